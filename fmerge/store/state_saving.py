"""Writes networks of one's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from fmerge.store.atomic import replacing_folder
from fmerge.store.saved_form import SavedForm
from fmerge.store.saving import stored_as

_ONE_FILE: Final = 1 << 62
"""Bytes of a shard that holds everything."""


def save_states(
    folder: Path,
    networks: Mapping[str, nn.Module],
    cards: Mapping[str, str] | None = None,
    forms: Mapping[str, SavedForm] | None = None,
) -> None:
    """Writes networks of one's own as ``model.safetensors``, all of them whole or none.

    Args:
        folder: The folder they are written to; an old one is replaced.
        networks: Name of each network's folder inside it to the network; ``""`` puts a single
            one into ``folder`` itself.
        cards: Name of each network's folder to its ``README.md``; None for no cards.
        forms: Name of each network's folder to the form it is written in; as it is in memory
            where there is none.
    """
    from huggingface_hub import save_torch_state_dict

    with replacing_folder(folder) as temporary:
        for name, network in networks.items():
            place, form = temporary / name, (forms or {}).get(name) or SavedForm()
            place.mkdir(exist_ok=True)
            with stored_as(network, form):  # type: ignore[arg-type]
                # copies: load_state_dict needs tied tensors under both of their names
                state: dict[str, Any] = {
                    key: one.detach().cpu().clone()
                    for key, one in network.state_dict().items()
                    if isinstance(one, Tensor)
                }
            save_torch_state_dict(state, place, max_shard_size=form.shard_bytes or _ONE_FILE)
            if cards:
                (place / "README.md").write_text(cards[name], encoding="utf-8")
