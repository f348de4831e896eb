"""One run over all tensors of a merge: each is seen, merged, and written in turn."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.fisher.summary import FisherSummary, summarise_fishers
from fmerge.merging.buffers import network_state
from fmerge.merging.observer import Observer
from fmerge.merging.window import Window
from fmerge.merging.writers import Writers
from fmerge.methods.base import TensorFormula
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.roles import places_of
from fmerge.params import Params, check_finite
from fmerge.report.distances import LayerDistances
from fmerge.store import (
    StoredParams,
    check_fisher,
    read_fisher_header,
    stored_fisher,
)

if TYPE_CHECKING:
    from fmerge.merging.streaming import Streaming

_MOST_WAITING: Final = 192 << 20
"""Most bytes of tensors that wait to be hashed or written."""

_SYNCED: Final = 256 << 20
"""Bytes after which what was written is made sure to be on the disk."""


@dataclass(frozen=True)
class Found:
    """What a merge tensor by tensor tells of itself.

    Attributes:
        hashes: SHA-256 of each ``expert`` and of the ``base``.
        vectors: A sentence on the task vectors; empty without a base.
        facts: The method's sentences.
        fishers: Where the mass of the Fishers lies, if the method has any.
        distances: How far the experts lie from the base and from each other, by layer.
    """

    hashes: Mapping[str, Any]
    vectors: str
    facts: Sequence[str]
    fishers: FisherSummary | None
    distances: LayerDistances | None


@dataclass
class Pass:
    """One run over all tensors.

    Attributes:
        streaming: The experts and the models to be written.
        coefficients: λ by expert, and the method's numbers.
        folder: Where the files are written.
        reader: Reads the next tensor.
        hasher: Sees the tensors in order.
        writer: Writes them.
    """

    streaming: "Streaming"
    coefficients: Mapping[str, float]
    folder: Path
    reader: Executor
    hasher: Executor
    writer: Executor
    _waiting: deque[tuple[int, Future[None]]] = field(default_factory=deque)
    _size: int = 0

    def __post_init__(self) -> None:
        ensemble = self.streaming.ensemble
        self.method = self.streaming.method.with_numbers(self.coefficients)
        self.weights = ensemble.tensors
        based = ensemble.base_source is not None
        models = [*([ensemble.base_places] if based else []), *ensemble.places.values()]
        count = len(ensemble.places)
        self.window = Window(models, count, self.streaming.dtypes, self.reader)
        columns = [self.window.column(m, self.weights) for m in range(len(models))]
        self.observer = Observer(ensemble.sources, ensemble.base_source)
        self.fishers = {
            name: StoredParams({key: places[key] for key in self.weights})
            for name, file in self.streaming.fishers.items()
            for places in [stored_fisher(file)]
        }
        first = next(iter(ensemble.places.values()))
        shapes = {name: torch.empty(first[name].shape, device="meta") for name in self.weights}
        self.inputs = MergeInputs(
            base=columns[0] if based else None,
            experts=columns[-count:],
            coefficients=[self.coefficients[name] for name in ensemble.names],
            statistics=[self.fishers[name] for name in ensemble.names if self.fishers],
            given_places=places_of(shapes),
        )

    def run(self, stop: Callable[[], int]) -> Found:
        """Makes the merge."""
        inputs, fishers = self.inputs, None
        order = sorted(self.weights)
        if self.fishers:  # a Fisher belongs to the very weights, which are seen before the merge
            self._check_fishers()
            scales = [self.method.statistic_scale(one) for one in self.fishers.values()]
            fishers = summarise_fishers(self.fishers)
            inputs = replace(inputs, scales=scales)
        try:
            self.window.follow(self.weights)  # in which order what is found of all is found
            formula = self.method.by_tensor(inputs)
            self.window.follow(order)
            with Writers(self.folder, self.streaming.outputs, self._begun()) as writers:
                self._merge(formula, writers, stop)
            facts = self.method.facts(inputs)
        except ValueError as error:  # what a formula cannot do with these numbers
            raise UserError(f"{type(self.method).__name__}: {error}") from error
        self.observer.check()
        seen = self.observer
        distances = seen.distances(self.weights)
        return Found(seen.hashes, seen.vectors, facts, fishers, distances)

    def _merge(self, formula: TensorFormula, writers: Writers, stop: Callable[[], int]) -> None:
        moved = self._merged_buffers()
        writers.constants({name: self._finite(name, one) for name, one in moved.items()})
        weights, every = set(self.weights), range(len(self.streaming.outputs))
        for name in sorted(self._names):
            if number := stop():
                raise SystemExit(128 + number)
            if not self.fishers:
                self._observe(name, name in weights)
            if name in writers.done:
                continue
            if name in weights:
                merged = self._finite(name, formula(name))
                self._write(name, dict.fromkeys(every, merged), writers)
            else:
                self._write(name, self._heads(name), writers)
        self._settle(0)
        writers.sync()

    def _merged_buffers(self) -> Params:
        ensemble, names = self.streaming.ensemble, self.streaming.ensemble.moving
        if not names:
            return {}
        base = None if ensemble.base is None else {name: ensemble.base[name] for name in names}
        experts = [{name: one[name] for name in names} for one in ensemble.bodies.values()]
        return self.method.merge_buffers(base, experts, self.inputs.coefficients)

    @cached_property
    def _names(self) -> set[str]:
        """The names of all parameters and floating-point buffers of all models."""
        states = self._states.values()
        return {*self.weights, *(name for state in states for name in state)}

    @cached_property
    def _states(self) -> Mapping[str, Params]:
        """Expert to what is hashed of it: of a donor the body alone."""
        ensemble = self.streaming.ensemble
        models, bodies = ensemble.models, ensemble.bodies
        return {
            # the live networks share their buffers by now
            name: (network_state(models[name]) if name in models else {}) | body
            for name, body in bodies.items()
        }

    def _observe(self, name: str, merged: bool) -> None:
        if merged:
            tensors = self.window.at(name)
            size = sum(one.nbytes for one in tensors)
            self._submit(self.hasher, size, self.observer.body, name, tensors, True)
            return
        ensemble = self.streaming.ensemble
        self._settle(0)  # each hash takes the tensors in order
        for expert, state in self._states.items():
            if name not in state:
                continue
            place = ensemble.places[expert].get(name)
            tensor = state[name] if place is None else place.read().float()
            if place is not None:
                check_finite({name: tensor}, ensemble.sources[expert])
            self.observer.own(expert, name, tensor)
        if ensemble.base is not None and name in ensemble.moving:
            self.observer.of_base(name, ensemble.base[name])

    def _check_fishers(self) -> None:
        """Sees all models, and compares their hashes with those of the Fishers."""
        weights = set(self.weights)
        self.window.follow(sorted(weights))
        for name in sorted(self._names):
            self._observe(name, name in weights)
        self._settle(0)
        hashes, ensemble = self.observer.hashes["expert"], self.streaming.ensemble
        for name, file in self.streaming.fishers.items():
            _, provenance = read_fisher_header(file)
            key = "model_sha256" if name in ensemble.models else "body_sha256"
            if provenance.get(key) != hashes[name]:
                source = ensemble.sources[name]
                raise UserError(
                    f"{file}: is the Fisher of another model "
                    f"({provenance.get('model', 'unknown')}), not of {source}; compute it with "
                    f"'fmerge fisher --expert {source}'"
                )
            check_fisher(file, self.fishers[name])

    def _finite(self, name: str, merged: Tensor) -> Tensor:
        rounded = merged.to(self.streaming.dtypes.get(name, merged.dtype))
        try:
            made = f"{type(self.method).__name__} at {dict(self.coefficients)}"
            check_finite({name: rounded}, made)
        except UserError:
            self._settle(0)  # which tells of the expert whose numbers they are, if they are its
            raise
        return rounded

    def _heads(self, name: str) -> dict[int, Tensor]:
        """A parameter that is not merged, by the position of the model that has it."""
        places = self.streaming.ensemble.places
        return {
            number: places[one.task][name].read()
            for number, one in enumerate(self.streaming.outputs)
            if name in one.weights
        }

    def _write(self, name: str, tensors: Mapping[int, Tensor], writers: Writers) -> None:
        size = sum(one.nbytes for one in tensors.values())
        self._submit(self.writer, size, writers.write, name, tensors)
        self._size += size
        if self._size > _SYNCED:
            self._settle(0)
            writers.sync()
            self._size = 0

    def _submit(self, pool: Executor, size: int, job: Callable[..., None], *given: Any) -> None:
        self._settle(max(0, _MOST_WAITING - size))
        self._waiting.append((size, pool.submit(job, *given)))

    def _settle(self, most: int) -> None:
        """Waits until so many bytes at most are waiting."""
        while self._waiting and sum(size for size, _ in self._waiting) > most:
            self._waiting.popleft()[1].result()

    def _begun(self) -> dict[str, Any]:
        """What identifies the merge."""
        return {
            "files": self.streaming.files(),
            "method": repr(self.method),
            "coefficients": dict(self.coefficients),
            "sizes": [dict(one.plan.sizes) for one in self.streaming.outputs],
        }
