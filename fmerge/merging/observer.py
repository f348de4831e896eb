"""What a merge tensor by tensor learns of its models as they pass: hashes, distances, NaNs."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from fmerge.merging.compatibility import described, refuse_unrelated
from fmerge.merging.distances import DistanceSums
from fmerge.params import check_finite, digest_header
from fmerge.report.distances import LayerDistances

_CHUNK: Final = 1 << 17
"""Entries of a chunk: all that is computed of them stays in the processor's cache."""


class Observer:
    """Hashes the models as ``fingerprint`` does, and checks their numbers.

    Every tensor is seen once, in the order of the names.

    Args:
        experts: Expert to where it was read from.
        base: Where the base was read from, if there is one.
    """

    def __init__(self, experts: Mapping[str, str], base: str | None) -> None:
        self.experts = dict(experts)
        self.base = base
        self._digests = [hashlib.sha256() for _ in range(len(experts) + (base is not None))]
        self._sources = [*([base] if base is not None else []), *experts.values()]
        size = len(self._digests)
        # of θ₀, or θ₁ where there is no base, and of the others' differences from it
        self._matrices = torch.zeros(size, size, dtype=torch.float64)
        self._sums = DistanceSums(list(experts), base is not None)
        self._rows = torch.empty(0)

    def body(self, name: str, models: Sequence[Tensor], shared: bool) -> None:
        """Takes one tensor of all models.

        Args:
            name: Its name.
            models: The base's, where there is one, and each expert's.
            shared: Whether it is of the body, not of a head that is merged.
        """
        for digest, tensor in zip(self._digests, models, strict=True):
            digest.update(digest_header(name, tensor, torch.float32))
        if not len(self._rows):
            self._rows = torch.empty(len(models), _CHUNK)
        products = torch.zeros_like(self._matrices)
        flat = [tensor.reshape(-1) for tensor in models]
        for start in range(0, len(flat[0]), _CHUNK):
            parts = [one[start : start + _CHUNK] for one in flat]
            rows = self._rows[:, : len(parts[0])]
            for row, part, digest in zip(rows, parts, self._digests, strict=True):
                row.copy_(part)
                digest.update(row.numpy())
            rows[1:] -= rows[0]
            products += (rows @ rows.T).double()
        if not torch.isfinite(products).all():
            for source, tensor in zip(self._sources, models, strict=True):
                check_finite({name: tensor.float()}, source)
        self._sums.add(name, products)
        if shared and models[0].ndim >= 2:
            self._matrices += products

    def own(self, expert: str, name: str, tensor: Tensor) -> None:
        """Takes a tensor that one model has: of a head, or a buffer.

        Args:
            expert: The expert; the base's name for messages is no expert's.
            name: The tensor's name.
            tensor: The tensor, as ``fingerprint`` would be given it.
        """
        digest = self._digests[list(self.experts).index(expert) + (self.base is not None)]
        self._add(digest, name, tensor)

    def of_base(self, name: str, tensor: Tensor) -> None:
        """Takes a buffer of the base.

        Args:
            name: Its name.
            tensor: The buffer.
        """
        self._add(self._digests[0], name, tensor)

    def _add(self, digest: Any, name: str, tensor: Tensor) -> None:
        digest.update(digest_header(name, tensor))
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    def check(self) -> None:
        """Refuses experts that are as far from their origin as unrelated models would be."""
        sums = self._matrices
        own = float(sums[0, 0])
        first = f"the base {self.base}" if self.base is not None else self._sources[0]
        for m in range(1, len(sums)):
            away, beside = float(sums[m, m]), float(sums[0, m])
            numbers = away, own, own + 2 * beside + away, own + beside
            refuse_unrelated(numbers, first, self._sources[m])

    @property
    def hashes(self) -> dict[str, Any]:
        """SHA-256 of each ``expert`` and of the ``base``, as ``fingerprint`` gives it."""
        found = [digest.hexdigest() for digest in self._digests]
        base = found.pop(0) if self.base is not None else None
        return {"expert": dict(zip(self.experts, found, strict=True)), "base": base}

    @property
    def vectors(self) -> str:
        """A sentence on the task vectors, where there is a base."""
        found = self.distances()
        return "" if found is None or self.base is None else described(found)

    def distances(self, names: Sequence[str] = ()) -> LayerDistances | None:
        """Tells how far the experts lie from the base and from each other, by layer.

        Args:
            names: The body's tensors, in the order of the model; as they came when left out.

        Returns:
            The distances, if any tensor was seen.
        """
        return self._sums.found(names)
