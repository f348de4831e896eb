"""A model's weights, or their headers alone, checked against its config before they are read."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.params import layer_of
from fmerge.store.adapter_weights import apply_adapter
from fmerge.store.adapters import Adapter, is_adapter, read_adapter
from fmerge.store.folders import Header, check_described, check_weights, is_float
from fmerge.store.sources import base_folder, read_part
from fmerge.store.tensor_files import StoredTensor, stored_tensors
from fmerge.store.unused_tensors import check_used
from fmerge.store.weight_places import note_places, numbered, stored_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEADERS: ContextVar[Literal["", "shapes", "places"]] = ContextVar("headers", default="")


@contextmanager
def reading_headers(places: bool = False) -> Iterator[None]:
    """Makes ``read_weights`` read names, kinds and shapes alone inside the block.

    The weights of its models are then equal numbers that share one number's memory. A model from
    the hub is read whole, as its header is not on this machine.

    Args:
        places: Whether ``places_in`` is to tell where the weights lie. Buffers are then read, and
            a model of the hub's cache is not read whole.

    Yields:
        Nothing.
    """
    token = _HEADERS.set("places" if places else "shapes")
    try:
        yield
    finally:
        _HEADERS.reset(token)


def read_weights(
    source: str,
    kind: str,
    config: Any,
    folder: str,
    state: Mapping[str, Tensor] | None,
    any_head: bool = False,
) -> tuple["PreTrainedModel", dict[str, str]]:
    """Reads a model in float32 on the CPU.

    Args:
        source: Where from, for the message.
        kind: Name of an Auto class of transformers, or of a model's own class.
        config: The model's config.
        folder: The folder or hub id of the weights, if ``state`` is None; or of an adapter.
        state: The weights themselves.
        any_head: Whether a head of another kind is left out.

    Returns:
        The model, and for each tensor that the source does not give it, by name, what is wrong.
    """
    places: Mapping[str, StoredTensor] = {}
    adapter = _adapter(folder) if state is None else None
    place = None if state is not None else _cached(base_folder(folder))
    describe = partial(_on_meta, kind, config)
    header, buffers = _checked_header(source, place, config, describe)
    quiet: Any = nullcontext()
    if _HEADERS.get() and (state is not None or header):
        state, places, quiet = _without_numbers(place, header, state, buffers)

    def read(auto: Any) -> Any:
        # the class itself takes tensors, the Auto class wants a folder
        loader = getattr(auto, kind) if state is None else type(describe(auto))
        # load_state_dict would overwrite a weight that the config ties and the file does not
        return loader.from_pretrained(
            None if state is not None else place,
            config=config,
            state_dict=state,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in the loading info, to be refused
        )

    with quiet:
        model, info = read_part(source, "weights", read, place)
    lacking = _checked(source, model, info, _shapes(header, state), any_head or adapter is not None)
    note_places(model, info["missing_keys"], {} if adapter is not None else places)
    return model, lacking if adapter is None else _adapt(adapter, model, source, lacking)


def _adapt(
    adapter: Adapter, model: "PreTrainedModel", source: str, lacking: Mapping[str, str]
) -> dict[str, str]:
    """Makes a base the adapter's model; returns what that lacks, which may bring its own head."""
    given = apply_adapter(adapter, model, source, values=not _HEADERS.get())
    return {name: wrong for name, wrong in lacking.items() if name not in given}


def _checked(
    source: str,
    model: "PreTrainedModel",
    info: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    any_head: bool,
) -> dict[str, str]:
    """Refuses tensors that the model does not use; says what is wrong with those it lacks."""
    unexpected, names = info["unexpected_keys"], [name for name, _ in model.named_parameters()]
    _check_layers(source, unexpected, names)
    check_used(source, model, unexpected, shapes, any_head)
    return _lacking(info)


def _adapter(folder: str) -> Adapter | None:
    return read_adapter(folder) if is_adapter(folder) else None


def _cached(place: str) -> str:
    """The folder of a model in the hub's cache, where its weights are wanted in their places."""
    return str(stored_folder(place) or place) if _HEADERS.get() == "places" else place


def _without_numbers(
    place: str | None,
    header: Header,
    state: Mapping[str, Tensor] | None,
    buffers: Collection[str],
) -> tuple[Mapping[str, Tensor], Mapping[str, StoredTensor], Any]:
    """Weights that take no memory, and where those of a folder lie, if that is wanted."""
    from transformers.initialization import no_init_weights

    places: Mapping[str, StoredTensor] = {}
    if _HEADERS.get() == "places" and place is not None:
        places = stored_tensors(Path(place))
        state = numbered(places, buffers)
    else:
        state = _unread(header) if state is None else _emptied(state)
    return state, places, no_init_weights()  # which gives no memory to what the file lacks


def _shapes(header: Header, state: Mapping[str, Tensor] | None) -> dict[str, tuple[int, ...]]:
    known = {name: shape for name, (_, shape) in header.items()}
    return known | {name: tuple(one.shape) for name, one in (state or {}).items()}


def _lacking(info: Mapping[str, Any]) -> dict[str, str]:
    lacking = dict.fromkeys(info["missing_keys"], "missing")
    for key, found, expected in info["mismatched_keys"]:
        lacking[key] = f"{tuple(found)} where its config says {tuple(expected)}"
    return lacking


def _on_meta(kind: str, config: Any, auto: Any) -> Any:
    """Makes the model that a config describes, without memory for its weights."""
    made = getattr(auto, kind)
    with torch.device("meta"):
        if hasattr(made, "from_config"):
            return made.from_config(config, trust_remote_code=False)
        return made._from_config(config)


def _checked_header(
    source: str, place: str | None, config: Any, describe: Callable[[Any], Any]
) -> tuple[Header, Collection[str]]:
    """Reads the header of a local folder and compares it with the config; lists the buffers."""
    # before the weights are read: a damaged config may describe a model that fills the memory
    if place is None or not Path(place).is_dir():
        return {}, ()
    header = check_weights(Path(place), config.to_dict())
    buffers: list[str] = []
    if header:
        model = read_part(source, "config", describe)
        buffers = [name for name, _ in model.named_buffers()]
        described = dict(model.named_parameters())
        numbers = sum(parameter.numel() for parameter in described.values())
        check_described(Path(place), numbers, header)
        _check_kinds(source, described, header)
    return header, buffers


# one number, expanded to any shape, takes the memory of one number
def _unread(header: Header) -> dict[str, Tensor]:
    kinds = {True: torch.float32, False: torch.int64}
    return {
        name: torch.zeros((), dtype=kinds[is_float(kind)]).expand(shape)
        for name, (kind, shape) in header.items()
    }


def _emptied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros((), dtype=one.dtype).expand(one.shape) for name, one in state.items()}


def _check_kinds(source: str, described: Mapping[str, Any], header: Header) -> None:
    # a file of the body alone names its tensors without the body's prefix
    short = {name.partition(".")[2] for name in described} | described.keys()
    for name, (kind, _) in header.items():
        if name in short and not is_float(kind):
            raise UserError(
                f"{source}: tensor '{name}' is of kind {kind}, but weights are floating-point "
                "numbers; give the model as it was before quantization"
            )


def _check_layers(source: str, unexpected: Iterable[str], names: Sequence[str]) -> None:
    """Refuses layers that the config does not have: the model would run without them."""
    for key in sorted(unexpected):
        layer = layer_of(key)
        if not layer:
            continue
        stack, number = layer.split(".")[-2:]  # without the prefix, which a file may lack
        inside = [name for name in names if f".{stack}." in f".{name}"]
        if inside and not any(f".{stack}.{number}." in f".{name}" for name in inside):
            raise UserError(
                f"{source}: tensor '{key}' is of a layer that its config does not have; the "
                "config belongs to a smaller model"
            )
