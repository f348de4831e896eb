"""Saves models as Hugging Face folders, in the form that they are stored in."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.store.adapter_saving import save_adapter
from fmerge.store.atomic import replacing_folder
from fmerge.store.saved_form import SavedForm
from fmerge.store.side_files import copy_side_files
from fmerge.store.sources import quiet_transformers
from fmerge.store.tokenizer_parts import save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GENERATION = "generation_config.json"


def save_models(
    folder: Path,
    models: Mapping[str, "PreTrainedModel"],
    tokenizer: "PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase]",
    cards: Mapping[str, str] | None = None,
    forms: Mapping[str, SavedForm] | None = None,
) -> None:
    """Writes Hugging Face folders, all of them whole or none.

    Args:
        folder: The folder they are written to; an old one is replaced.
        models: Name of each model's folder inside it to the model; ``""`` puts a single one into
            ``folder`` itself.
        tokenizer: The tokenizer they share, or name of a folder to the tokenizer that it gets.
        cards: Name of each model's folder to its ``README.md``; None for no cards.
        forms: Name of each model's folder to the form it is written in; as it is in memory, and
            without side files, where there is none.
    """
    with replacing_folder(folder) as temporary, quiet_transformers():
        own = tokenizer if isinstance(tokenizer, Mapping) else dict.fromkeys(models, tokenizer)
        for name, one in own.items():
            save_tokenizer(one, temporary / name)
        for name, model in models.items():
            form = (forms or {}).get(name) or SavedForm()
            if form.adapter is not None:
                save_adapter(temporary / name, model, form.adapter)
            else:
                with stored_as(model, form):
                    _save_model(temporary / name, model, form)
            if form.folder is not None and form.adapter is None:
                copy_side_files(form.folder, temporary / name, replacing=(_GENERATION,))
            if cards:
                (temporary / name / "README.md").write_text(cards[name], encoding="utf-8")


def _save_model(folder: Path, model: "PreTrainedModel", form: SavedForm) -> None:
    counts = Counter[torch.dtype]()
    for parameter in model.parameters():
        counts[parameter.dtype] += parameter.numel()
    config: Any = model.config
    for key in getattr(config, "sub_configs", {}):
        if (inner := getattr(config, key, None)) is not None:
            inner.dtype = _commonest(counts)
    # in shards of a size of transformers' own choice, where none is given
    size: dict[str, Any] = {}
    if form.shard_bytes is not None:
        size = {"max_shard_size": form.shard_bytes}
    if form.written is not None:
        size["state_dict"] = {}
    with _own_generation_config(model, form):
        model.save_pretrained(folder, **size)
    if form.written is not None:
        _take_weights(form.written, folder)
    if len(counts) > 1:  # transformers names the first tensor's, and converts all to it on reading
        config.dtype = _commonest(counts)
        config.save_pretrained(folder)


def _take_weights(written: Path, folder: Path) -> None:
    """Puts files of weights into a folder too, without their bytes being copied."""
    for path in folder.glob("*.safetensors"):  # of no tensors
        path.unlink()
    for path in written.iterdir():
        os.link(path, folder / path.name)


def _commonest(counts: Counter[torch.dtype]) -> str:
    return str(counts.most_common(1)[0][0]).removeprefix("torch.")


@contextmanager
def _own_generation_config(model: "PreTrainedModel", form: SavedForm) -> Iterator[None]:
    """Leaves the generation config to the side files, where they have one.

    transformers refuses to write some that it reads, such as one with a temperature that it does
    not use, and adds its own version to the others.
    """
    found: Any = getattr(model, "generation_config", None)
    if form.folder is None or not (form.folder / _GENERATION).is_file() or found is None:
        yield
        return
    model.generation_config = type(found)()
    try:
        yield
    finally:
        model.generation_config = found


@contextmanager
def stored_as(model: "PreTrainedModel", form: SavedForm) -> Iterator[None]:
    """Rounds a model's floating-point tensors to the dtypes of a form; restores them on exit.

    Args:
        model: The live model; tied and shared parameters stay so.
        form: The dtypes.

    Yields:
        Nothing.

    Raises:
        UserError: If a number is beyond the range of its dtype.
    """
    before: list[tuple[Tensor, Tensor]] = []
    try:
        saved = model.state_dict().keys()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            dtype = form.dtype_of(name, tensor.dtype) if form.dtypes else tensor.dtype
            if name in saved and tensor.is_floating_point() and dtype != tensor.dtype:
                if form.written is not None:  # one number, which fills no memory
                    before.append((tensor, tensor.data))
                    tensor.data = torch.zeros((), dtype=dtype).expand(tensor.shape)
                    continue
                rounded = tensor.detach().to(dtype)
                if torch.isinf(rounded).sum() > torch.isinf(tensor).sum():
                    raise UserError(
                        f"tensor '{name}' of the merge has numbers beyond the range of {dtype}; "
                        "set --dtype bfloat16 or float32"
                    )
                before.append((tensor, tensor.data))
                tensor.data = rounded
        yield
    finally:
        for tensor, data in before:
            tensor.data = data
