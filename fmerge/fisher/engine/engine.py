"""Sums of squared per-example gradients from one forward pass of a whole batch."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmerge.fisher.batches import LogProbs, differentiating
from fmerge.fisher.engine.gradients import Gradients
from fmerge.fisher.engine.parameter_uses import Layer, covered_layers
from fmerge.fisher.engine.per_example import Fallback, PerExample, square_gradients
from fmerge.fisher.engine.recorder import Recorder
from fmerge.fisher.engine.row_order import RowOrder
from fmerge.fisher.engine.self_check import SelfCheck
from fmerge.fisher.engine.squares import add_squares
from fmerge.fisher.engine.together import Alone
from fmerge.fisher.estimators import check_numbers
from fmerge.params import Params

if TYPE_CHECKING:
    from fmerge.fisher.engine.shards import Shards  # importing FSDP2 takes a second

Weigh = Callable[[Tensor], Tensor]
"""From ℓ (n, c) to W (n, c), the weights of the squares."""

_ATTEMPTS = 4
"""Most recorders of a batch after its kind was checked; then the fallback takes it."""

_ROUNDS = 30
"""Each round of a check settles something; a model that never settles goes to the fallback."""

_LOG = logging.getLogger(__name__)


class SquaredGradients:
    r"""Adds squared per-example gradients of log-likelihoods to sums.

    .. math::
        sums \mathrel{+}= \sum_n \sum_c W_{nc} (\partial \ell_{nc} / \partial \theta)^2

    Args:
        module: The module whose layers are recorded; they must stay the same.
        log_probs: From a batch to ℓ (n, c).
        parameters: The parameters to differentiate, by name.
        fallback: How parameters that no rule covers are differentiated.
        shards: The processes' shares of the parameters, where FSDP2 splits them: ``parameters``
            are whole ones then, and batches have more than one example.

    Attributes:
        uncovered: Names of the parameters that went to the fallback.
    """

    def __init__(
        self,
        module: nn.Module,
        log_probs: LogProbs,
        parameters: Mapping[str, nn.Parameter],
        fallback: Fallback = "vmap",
        shards: "Shards | None" = None,
    ) -> None:
        self.module = module
        self.log_probs = log_probs
        self.parameters = dict(parameters)
        self.fallback = fallback
        self.uncovered: set[str] = set()
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._row_orders: dict[str, RowOrder] = {}
        self._checked: set[Any] = set()
        self._shards = shards
        self._together = shards or Alone()
        self._everything = list(module.parameters())
        if shards is not None:
            self._everything = shards.twins(shards.whole)
        self._covered = self.parameters
        self._layers = self._covered_layers()
        self._per_example = PerExample(module, log_probs, fallback)

    def add(self, batch: Any, n: int, weigh: Weigh, sums: Params) -> None:
        """Adds one batch.

        Args:
            batch: n examples.
            n: Their number.
            weigh: From ℓ (n, c) to W (n, c).
            sums: What is added to, by name.
        """
        if n == 1:  # the batch's gradient is the example's: no rule is needed
            with differentiating(self.parameters.values(), self._everything):
                log_likelihoods = self._log_likelihoods(batch, 1)
                seeds = candidate_seeds(log_likelihoods, weigh(log_likelihoods))
                square_gradients(log_likelihoods, seeds, self.parameters, sums)
            return
        if self.uncovered and self._per_example.loops:
            # each example is differentiated by itself anyway: the batched passes are saved
            with torch.no_grad():
                values = self._log_likelihoods(batch, n)
            torch.clear_autocast_cache()  # its weights were cast without a graph
            seeds = candidate_seeds(values, weigh(values))
            self._per_example.add(batch, seeds, self.parameters, sums)
            return
        seeds_or_none, attempts = None, 0
        while seeds_or_none is None:
            if attempts:
                self._check(batch, n)
            if attempts > _ATTEMPTS:  # the model calls other layers each time
                self._leave(set(self._covered))
            with self._differentiating():
                seeds_or_none = self._try(batch, n, weigh, sums)
            attempts += 1
        uncovered = {name: self.parameters[name] for name in sorted(self.uncovered)}
        if uncovered:
            self._per_example.add(batch, seeds_or_none, uncovered, sums)

    def _try(self, batch: Any, n: int, weigh: Weigh, sums: Params) -> list[Tensor] | None:
        """Adds the covered parameters' squares; None, with nothing added, if not yet checked."""

        def square(parameter: nn.Parameter, uses: list[Gradients]) -> None:
            name = self._names[parameter]
            if self._shards is None:
                add_squares(uses, sums[name])
            else:
                self._shards.add_squares(name, uses, sums)

        recorder = Recorder(self._layers, self._names, n, self._row_orders)
        with recorder.record():
            log_likelihoods = self._log_likelihoods(batch, n, recorder)
            unseen, leaves = recorder.unseen(log_likelihoods)
            # nothing is added before it is known that no use was missed and the rules are right
            unchecked = bool(unseen) or self._kind(recorder) not in self._checked
            if self._together.any(bool(self._covered) and unchecked):
                return None
            seeds = candidate_seeds(log_likelihoods, weigh(log_likelihoods))
            missing = self._together.most(len(seeds)) - len(seeds)
            seeds += [torch.zeros_like(log_likelihoods)] * missing
            for k, seed in enumerate(seeds):
                follows = k + 1 < len(seeds)
                recorder.backward(
                    log_likelihoods, leaves, seed, retain_graph=follows, finish=square
                )
                if self._shards is not None:
                    self._shards.finish(sums)
        return seeds

    def _check(self, batch: Any, n: int) -> None:
        """Finds out how rows belong to examples and which parameters the rules cover."""
        check = SelfCheck(n, self._row_orders)
        done, rounds = False, 0
        while not done:
            rounds += 1
            if rounds > _ROUNDS:
                self._leave(set(self._covered))
            with self._differentiating():
                done = self._check_once(check, batch, n)

    def _check_once(self, check: SelfCheck, batch: Any, n: int) -> bool:
        """Returns False where something was learnt, so that the batch must be checked again.

        No graph and no recording outlives the call: only one is in memory at a time.
        """
        values = self._log_likelihoods(batch, n)
        check.differentiate(values, list(self._covered.values()))
        values = values.detach()  # frees the graph
        recorder = Recorder(self._layers, self._names, n, self._row_orders)
        with recorder.record():
            log_likelihoods = self._log_likelihoods(batch, n, recorder)
            check.compare_values(values, log_likelihoods)
            kind = self._kind(recorder)
            unseen, leaves = recorder.unseen(log_likelihoods)
            learnt, differing = check.compare_gradients(recorder, log_likelihoods, leaves)
        if self._together.any(learnt):
            return False
        failed = {self._names[parameter] for parameter in unseen or differing}
        if failed := self._together.union(failed):
            self._leave(failed)
            return False
        self._checked.add(kind)
        return True

    def _kind(self, recorder: Recorder) -> Any:
        """What two batches must share for one check to hold for both."""
        return recorder.structure(), tuple(sorted(self.uncovered))

    def _log_likelihoods(self, batch: Any, n: int, recorder: Recorder | None = None) -> Tensor:
        if recorder is None:
            torch.clear_autocast_cache()
            result = self.log_probs(batch)
        else:
            with nullcontext() if self._shards is None else self._shards.passing_tracked():
                result = recorder.forward(self.log_probs, batch)
        if result.ndim != 2 or len(result) != n:
            raise ValueError(
                f"log_probs gave a tensor of shape {tuple(result.shape)} for {n} examples; "
                f"expected ({n}, number of candidates)"
            )
        check_numbers(result)
        return result

    def _leave(self, names: set[str]) -> None:
        """Leaves parameters to the fallback, and names them in the log."""
        listed = ", ".join(sorted(names))
        if self.fallback == "error":
            raise ValueError(f"no rule covers every use of the parameters {listed}")
        _LOG.warning("differentiated example by example, since no rule covers them: %s", listed)
        self.uncovered |= names
        self._covered = {
            name: p for name, p in self.parameters.items() if name not in self.uncovered
        }
        self._layers = self._covered_layers()

    def _covered_layers(self) -> list[Layer]:
        parts = {} if self._shards is None else self._shards.parts
        whole = {
            part: self.parameters[name] for name, part in parts.items() if name in self._covered
        }
        return covered_layers(self.module, set(self._covered.values()), whole)

    def _differentiating(self) -> AbstractContextManager[None]:
        chosen = list(self._covered.values())
        if self._shards is not None:
            chosen = self._shards.twins(self._covered)
        return differentiating(chosen, self._everything)


def candidate_seeds(log_likelihoods: Tensor, weights: Tensor) -> list[Tensor]:
    """Makes the seeds of the backward passes: the k-th takes each example's k-th candidate.

    Candidates of weight zero are skipped, so there are as many passes as the most any example has.
    A seed is √W, so that the squares carry the weight W.

    Args:
        log_likelihoods: ℓ (n, c).
        weights: W (n, c), zero for candidates that are left out.

    Returns:
        As many (n, c) as the most candidates any example has.
    """
    present = weights > 0
    order = present.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    roots = weights.to(log_likelihoods.dtype).sqrt()
    seeds = []
    for k in range(int(present.sum(1).max())):
        candidate = order[:, k : k + 1]
        seed = torch.zeros_like(roots)
        seeds.append(seed.scatter_(1, candidate, roots.gather(1, candidate)))
    return seeds
