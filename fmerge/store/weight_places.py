"""Where the parameters of a model lie in its files, found by reading numbers in their place."""

from collections.abc import Collection, Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fmerge.store.folders import has_weights
from fmerge.store.side_files import hub_folder
from fmerge.store.sources import package_folder
from fmerge.store.tensor_files import StoredTensor

_FORMER = {"gamma": "weight", "beta": "bias"}
_PLACES: WeakKeyDictionary[nn.Module, Mapping[str, StoredTensor]] = WeakKeyDictionary()
"""Model to where the tensors of its parameters lie."""


def places_in(model: nn.Module) -> Mapping[str, StoredTensor]:
    """Tells where the tensors of a model lie that was read inside ``reading_headers(True)``.

    Args:
        model: The model.

    Returns:
        Names of its parameters to places. Those are missing that are no tensor of a file, or are
        put together of several.
    """
    return _PLACES.get(model, {})


def stored_folder(source: str) -> Path | None:
    """Finds the folder on this machine that a source's weights can be read from in parts.

    Args:
        source: A Hugging Face folder, a hub id or ``package:name/folder``.

    Returns:
        The folder, perhaps of the hub's cache; None where there is none.
    """
    place = Path(package_folder(source))
    folder = place if place.is_dir() else None if place.exists() else hub_folder(source)
    return folder if folder is not None and has_weights(folder) else None


def note_places(
    model: nn.Module, missing: Collection[str], places: Mapping[str, StoredTensor]
) -> None:
    """Notes where the parameters of a model lie.

    Args:
        model: A model that was given ``numbered`` weights.
        missing: The names that no file had.
        places: The tensors that the weights stand for.
    """
    # a buffer that no file has was made from the config, but not where headers alone are read
    if places and not set(missing) & {name for name, _ in model.named_buffers()}:
        _PLACES[model] = _found_again(model, places)


def numbered(places: Mapping[str, StoredTensor], buffers: Collection[str]) -> dict[str, Tensor]:
    """Makes weights whose entries are all the number of their tensor; buffers are read.

    Args:
        places: Where the tensors lie.
        buffers: The names of the model's buffers.

    Returns:
        Names to tensors, which take the memory of one number each.
    """
    known = {*buffers, *(name.partition(".")[2] for name in buffers)}
    return {
        name: one.read().clone()
        if name in known
        else torch.full((), float(number)).expand(one.shape)
        for number, (name, one) in enumerate(places.items())
    }


def _found_again(model: nn.Module, places: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The places of a model's parameters, told from the numbers that they have become."""
    # transformers renames tensors, adds and removes prefixes, and makes one tensor of several:
    # what it has put together has no such number throughout, or another shape or name
    names, found = list(places), {}
    for name, parameter in model.named_parameters():
        spread = any(
            stride and length > 1
            for stride, length in zip(parameter.stride(), parameter.shape, strict=True)
        )
        if spread or not parameter.numel():
            continue
        number = float(parameter.detach()[(0,) * parameter.dim()])
        if not (number.is_integer() and 0 <= number < len(names)):
            continue
        own = names[int(number)]
        same = _plain(own) == _plain(name) or _plain(own) == _plain(name.partition(".")[2])
        same = same or _plain(own.partition(".")[2]) == _plain(name)
        if same and places[own].shape == tuple(parameter.shape):
            found[name] = places[own]
    return found


def _plain(name: str) -> str:
    """A tensor's name without what TensorFlow called gains and shifts."""
    path, _, last = name.rpartition(".")
    return f"{path}.{_FORMER.get(last, last)}"
