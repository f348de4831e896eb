"""Reads a model's tensors from disk as they are stored, without making a model of them."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmerge.errors import UserError
from fmerge.params import Params
from fmerge.store.folders import safetensors_header, weight_files
from fmerge.store.kinds import check_format
from fmerge.store.pickles import load_plain
from fmerge.store.sources import is_lightning, load_lightning, package_folder


def load_params(path: str | Path) -> Params:
    """Reads a model's tensors into a dictionary, on the CPU; nothing in the files is run.

    Args:
        path: A Hugging Face folder, whose weights may be in several shards; a ``.safetensors`` or
            ``.bin`` file; a Lightning ``.ckpt``, whose ``state_dict`` is read; or
            ``package:name/folder``, which an installed package carries.

    Returns:
        The names of the tensors, as they are in the files, to the tensors, in their stored dtypes.

    Raises:
        UserError: If there is nothing at the path, or it cannot be read.

    Examples:
        >>> import fmerge
        >>> params = fmerge.load_params("path/to/model_a")
        >>> params["classifier.weight"].shape
        torch.Size([3, 16])
    """
    place = Path(package_folder(str(path)))
    if is_lightning(str(place)):
        state: Params = load_lightning(place)["state_dict"]
        return state
    if place.is_dir() or place.suffix == ".gguf":
        check_format(place)
    if place.is_dir():
        files = weight_files(place)
    elif place.suffix in {".safetensors", ".bin"}:
        files = [place]
    elif place.exists():
        raise UserError(
            f"{path}: is neither a Hugging Face folder nor a .safetensors, .bin or .ckpt file"
        )
    else:
        raise UserError(f"{path}: no such file or folder; load_params downloads nothing")
    params: Params = {}
    for file in files:
        params |= _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    return params


def _safetensors(path: Path) -> Params:
    safetensors_header(path)  # refuses a missing or damaged file in one line
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot read its tensors ({error}); get the file again") from error


def _pickled(path: Path) -> Params:
    found = load_plain(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, but tensors by name are needed")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: '{str(name)[:80]}' is no tensor; save the weights alone")
    return found
