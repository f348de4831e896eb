"""Reads weights of a network of one's own: files of a ``state_dict``, and folders."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from fmerge.errors import UserError, known
from fmerge.params import Params
from fmerge.store.params_file import load_params
from fmerge.store.pickles import load_plain
from fmerge.store.sources import is_lightning, package_folder

_LOG = logging.getLogger(__name__)

_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save a ``state_dict`` beside other things."""


def read_state(source: str) -> Params:
    """Reads the tensors of a network of one's own, on the CPU; nothing in the files is run.

    Args:
        source: A file of ``torch.save(network.state_dict(), …)``, whatever its ending, or of a
            dictionary that has one under ``state_dict``, ``model_state_dict`` or ``model``; a
            Lightning ``.ckpt``; a ``.safetensors`` file; a folder with ``model.safetensors``; or
            ``package:name/…``.

    Returns:
        Names to tensors as they are in the file, in their stored dtypes.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    place = Path(package_folder(source))
    if place.is_dir() or place.suffix == ".safetensors" or is_lightning(source):
        return load_params(place)
    found = load_plain(place)
    if isinstance(found, dict):
        found = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)), found)
    if not isinstance(found, dict) or not any(isinstance(one, Tensor) for one in found.values()):
        kind = f"a {type(found).__name__}"
        if isinstance(found, dict):
            kind = f"a dictionary of {known(list(found)[:5])}"
        raise UserError(
            f"{source}: holds {kind}, but tensors by name are needed; save them by "
            "torch.save(network.state_dict(), path)"
        )
    return {str(name): one for name, one in found.items() if isinstance(one, Tensor)}


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    task: str,
    optional: Collection[str] = (),
) -> None:
    """Copies the tensors of a file into a network, in place.

    The names in the file may have a prefix, as those of a network inside a LightningModule
    (``net.``), of a compiled one or of one task of ``fmerge fit``: it is found by the names.

    Args:
        network: The network.
        state: The tensors, as ``read_state`` gives them.
        source: Where they are from, for errors.
        task: The task, which chooses among the networks of a fit.
        optional: Names of tensors that stay as they are where the file lacks them, or has them in
            another shape.

    Raises:
        UserError: If a tensor is missing, superfluous, of another shape, or of whole numbers.
    """
    own = {name: one for name, one in network.state_dict().items() if isinstance(one, Tensor)}
    prefix = _prefix(own, state, source, task, optional)
    found = {name: state[prefix + name] for name in own if prefix + name in state}
    kind = type(network).__name__
    chosen = {}
    for name, tensor in own.items():
        given = found.get(name)
        fits = given is not None and given.shape == tensor.shape
        if not fits and name in optional:
            continue
        if given is None or not fits:
            shape = "missing" if given is None else str(tuple(given.shape))
            raise UserError(
                f"{source}: tensor '{prefix}{name}' is {shape}, but {tuple(tensor.shape)} in "
                f"{kind}; give weights of this network, or make the network that they are of"
            )
        if tensor.is_floating_point() != given.is_floating_point():
            raise UserError(
                f"{source}: tensor '{prefix}{name}' is of {given.dtype}, but {tensor.dtype} in "
                f"{kind}; give weights that are not quantized"
            )
        chosen[name] = given
    _tell_rest(state, own, prefix, source, kind)
    network.load_state_dict(chosen, strict=False)


def _prefix(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: str,
    task: str,
    optional: Collection[str],
) -> str:
    """What stands before the names of a network's tensors in a file."""
    needed = [name for name in own if name not in optional] or list(own)
    first = needed[0]
    ends = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    fitting = [
        one
        for one in dict.fromkeys(["", f"models.{task}.", *ends])
        if all(one + name in state for name in needed)
    ]
    if fitting[:1] in ([""], [f"models.{task}."]) or len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            f"{source}: holds several networks, {known(fitting)}; save the one that is meant "
            "alone, by torch.save(network.state_dict(), path)"
        )
    # the likeliest one, for the error that names what is missing
    return max(["", *ends], key=lambda one: sum(one + name in state for name in needed))


def _tell_rest(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    prefix: str,
    source: str,
    kind: str,
) -> None:
    """Refuses tensors that a network lacks; names those that stand beside it."""
    inside = [name for name in state if name.startswith(prefix)]
    alien = [name for name in inside if name.removeprefix(prefix) not in own]
    if alien:
        raise UserError(
            f"{source}: holds '{alien[0]}', which {kind} has not; give weights of this network, "
            "or make the network that they are of"
        )
    beside = [name for name in state if name not in inside and not name.startswith("models.")]
    if beside:
        from lightning.pytorch.utilities import rank_zero_only  # slow to import

        rank_zero_only(_LOG.warning)(
            "%s: left out what is not of %s: %s", source, kind, known(beside)
        )


def outputs_in(state: Mapping[str, Tensor], weight: str) -> int | None:
    """Finds how many outputs a head in a file has.

    Args:
        state: The tensors of the file.
        weight: The name of the head's weight, or of its bias.

    Returns:
        Its first dimension; None where the file has none, or several that differ.
    """
    sizes: Sequence[int] = [
        len(one)
        for name, one in state.items()
        if one.ndim and (name == weight or name.endswith(f".{weight}"))
    ]
    return sizes[0] if len(set(sizes)) == 1 else None
