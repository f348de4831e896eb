"""A merge as an adapter of its base: ΔW of a low rank, and what that keeps of it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.merging.experts import Ensemble
from fmerge.methods.low_rank import nearest_factors, noise_of
from fmerge.params import Params, layer_of
from fmerge.store import (
    Adapter,
    SavedAdapter,
    hash_of,
    is_adapter,
    merged_weight,
    outputs_last,
    read_adapter,
)

Rank = int | Literal["sum"]
"""The rank of an adapter, or the sum of the ranks of the experts' adapters."""


@dataclass(frozen=True)
class Lowered:
    """A merged body that an adapter of its base gives.

    Attributes:
        body: The body, W₀ + B A where it has factors.
        saved: What is written of it.
        kept: Name of each weight with factors to ‖B A‖² and ‖ΔW‖².
    """

    body: Params = field(repr=False)
    saved: SavedAdapter
    kept: Mapping[str, tuple[float, float]]

    @property
    def fact(self) -> str:
        """A sentence on the share of ‖ΔW‖² that the adapter keeps, in all and by layer."""
        ranks = sorted({a.shape[0] for _, a in self.saved.factors.values()})
        layers: dict[str, list[tuple[float, float]]] = {}
        for name, norms in self.kept.items():
            layers.setdefault(layer_of(name) or "outside of layers", []).append(norms)
        shares = ", ".join(f"{layer} {_share(norms)}" for layer, norms in layers.items())
        most = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return (
            f"adapter: {most}, which keeps {_share(self.kept.values())} of the squared norm of ΔW; "
            f"by layer: {shares}"
        )


@dataclass(frozen=True)
class AdapterOutput:
    """How a merge is made an adapter.

    Attributes:
        base: The base's body.
        source: Where the base is, as the adapter's config names it.
        ranks: Name of each weight that gets factors to their rank.
        outputs_last: Which of these weights are stored (i, o).
    """

    base: Params = field(repr=False)
    source: str
    ranks: Mapping[str, int]
    outputs_last: Mapping[str, bool]

    @property
    def size(self) -> int:
        """The bytes of all factors; at most, where headers alone were read."""
        shapes = {n: _matrix(self.base[n], last).shape for n, last in self.outputs_last.items()}
        return sum(4 * rank * sum(shapes[name]) for name, rank in self.ranks.items())

    def lower(self, body: Params) -> Lowered:
        """Finds the nearest body that an adapter gives.

        ΔW gets the factors of the nearest matrix of its rank; what has no factors stays as it is.

        Args:
            body: The merged body.

        Returns:
            The body that the adapter gives, and the adapter.
        """
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        kept: dict[str, tuple[float, float]] = {}
        found = dict(body)
        for name, rank in self.ranks.items():
            last, origin = self.outputs_last[name], self.base[name]
            change = _matrix(body[name].double() - origin.double(), last)
            b, a, share = nearest_factors(change, rank, noise_of(body[name]))
            norm = float(change.square().sum())
            kept[name] = share * norm, norm
            b, a = b.float(), a.float()
            factors[name] = b, a
            # as it will be read again
            found[name] = merged_weight(origin, {"A": a, "B": b}, 1.0, last)
        saved = SavedAdapter(
            base=self.source,
            base_hash=hash_of({name: self.base[name] for name in self.ranks}),
            factors=factors,
            whole=[n for n in body if n not in self.ranks and not body[n].equal(self.base[n])],
            body=list(body),
        )
        return Lowered(found, saved, kept)


def check_rank(rank: object, dtype: object) -> None:
    """Refuses what is no rank, before anything is read.

    Args:
        rank: What ``--adapter_rank`` gives.
        dtype: What ``--dtype`` gives.

    Raises:
        UserError: If it is none, or does not go with the dtype.
    """
    if rank is None:
        return
    if rank != "sum" and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise UserError(f"--adapter_rank: is {rank!r}, but must be a positive number or sum")
    if dtype not in {None, "float32"}:
        raise UserError(
            f"--dtype: is {dtype}, but an adapter (--adapter_rank) is written in float32; leave it "
            "out"
        )


def adapter_output(rank: Rank | None, ensemble: Ensemble) -> AdapterOutput | None:
    """Chooses what an adapter of a merge will hold.

    Args:
        rank: r of every ΔW; ``sum`` is Σₘ rₘ of the experts' adapters. None for no adapter.
        ensemble: Base and experts.

    Returns:
        The choice; None where no adapter is wanted.

    Raises:
        UserError: If there is no base, or an adapter cannot hold what experts change.
    """
    if rank is None:
        return None
    if ensemble.base is None or ensemble.base_source is None:
        raise UserError("--adapter_rank: needs the base that the adapter is of; give --base")
    if ensemble.moving:
        raise UserError(
            f"--adapter_rank: experts differ in '{ensemble.moving[0]}', a buffer, which adapters "
            "do not hold; leave it out"
        )
    model = next(iter(ensemble.models.values()))
    changed = _changed(ensemble)
    _check_ties(model, changed)
    changed = changed or ensemble.tensors  # where headers alone were read
    opened = {n: read_adapter(p) for n, p in ensemble.sources.items() if is_adapter(p)}
    if rank == "sum" and (whole := [n for n in ensemble.sources if n not in opened]):
        raise UserError(
            f"--adapter_rank: is sum, but expert '{whole[0]}' is no adapter, which has a rank; "
            "give a number"
        )
    last = {name: outputs_last(_owner(model, name)) for name in changed}
    ranks = _ranks(rank, ensemble.base, last, _names(model, opened))
    source = ensemble.base_source
    return AdapterOutput(
        base=ensemble.base,
        source=os.path.abspath(source) if os.path.isdir(source) else source,
        ranks=ranks,
        outputs_last={name: bool(last[name]) for name in ranks},
    )


def _ranks(
    rank: Rank, base: Params, last: Mapping[str, bool | None], stored: Mapping[str, int]
) -> dict[str, int]:
    """The rank of each weight that gets factors."""
    ranks = {}
    for name, turned in last.items():
        # what adapters hold as a whole is saved so
        if turned is None or not name.endswith(".weight") or stored.get(name) == 0:
            continue
        own = stored.get(name, 0) if rank == "sum" else rank
        ranks[name] = min(own, *_matrix(base[name], turned).shape)
    found = {name: own for name, own in ranks.items() if own}
    if not found:
        raise UserError(
            "--adapter_rank: no expert changes a matrix, so there is no ΔW for an adapter; leave "
            "it out"
        )
    return found


def _changed(ensemble: Ensemble) -> list[str]:
    """The weights that an expert changes."""
    base, bodies = ensemble.base or {}, ensemble.bodies.values()
    return [n for n in ensemble.tensors if any(not one[n].equal(base[n]) for one in bodies)]


def _names(model: nn.Module, adapters: Mapping[str, Adapter]) -> dict[str, int]:
    """The sum of ranks by weight; 0 of what an adapter holds as a whole."""
    own, prefix = dict(model.named_parameters()), f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, int] = {}
    for adapter in adapters.values():
        for path, target in adapter.targets.items():
            name = f"{path}.weight" if f"{path}.weight" in own else f"{prefix}{path}.weight"
            found[name] = found.get(name, 0) + target.rank
    for adapter in adapters.values():
        found |= {n if n in own else prefix + n: 0 for n in adapter.replaced}
    return found


def _check_ties(model: nn.Module, changed: Sequence[str]) -> None:
    names: dict[int, list[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(one), []).append(name)
    tied = {group[0]: group[1] for group in names.values() if len(group) > 1}
    for name in changed:
        if name in tied:
            raise UserError(
                f"--adapter_rank: experts change '{name}', which is tied to '{tied[name]}', so "
                "that no adapter of the base is the merge; leave it out"
            )


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _matrix(tensor: Tensor, last: bool) -> Tensor:
    """A weight as a matrix of its outputs by its inputs."""
    return (tensor.T if last else tensor).flatten(1)


def _share(norms: Iterable[tuple[float, float]]) -> str:
    kept, whole = map(sum, zip(*norms, strict=True))
    share = kept / whole if whole else 1.0
    # 100% means all of it
    return "100%" if share > 1 - 1e-9 else f"{100 * min(share, 0.99999):.3f}%"
