"""The trials of a batch side by side, on the workers of a Ray cluster."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from fmerge.errors import UserError, shortened
from fmerge.merging.trials import Proposal
from fmerge.search import Trial

_LOOK: Final = 0.5
"""Seconds after which a request to stop is noticed while trials run."""

_ROOM: Final = 300.0
"""Seconds in which one worker at least must find room in the cluster and start."""

_LOST_AT_ONCE: Final = 3
"""Workers in a row that may be lost before one of them can make trials."""


@dataclass(eq=False)
class _Worker:
    """A worker, and what it does.

    Attributes:
        actor: Ray's handle of it.
        runs: Whether it has been given room, and reads the models.
        proposal: The trial that it makes.
    """

    actor: Any
    runs: bool = False
    proposal: Proposal | None = None


@final
@dataclass(kw_only=True)
class RayPool:
    """Makes trials on workers, one a device, which hold the models; Ray places and watches them.

    A trial whose worker is lost is made again on another one, and a lost worker is replaced as
    soon as the cluster has room: a lost machine makes the pool smaller, one that joins restores it.

    Attributes:
        ray: The module, connected.
        spawn: Makes a worker: an actor with ``ready``, ``begin`` and ``attempt``.
        state: What ``begin`` is given: references to objects in Ray's store.
        count: How many workers there are.
        lap: Is called when a batch is made.
    """

    ray: Any
    spawn: Callable[[], Any]
    state: Sequence[Any]
    count: int
    lap: Callable[[], None] = lambda: None
    _idle: list[_Worker] = field(default_factory=list)
    _busy: dict[Any, _Worker] = field(default_factory=dict)
    _lost: int = 0
    _since: float = 0.0

    def run(self, batch: Sequence[Proposal], stop: Callable[[], int]) -> Iterator[Trial]:
        """Makes trials; see ``Pool``."""
        for _ in range(self.count - len(self._idle) - len(self._busy)):
            self._start()
        self._since = time.monotonic()
        queue, made, again = deque(batch), dict[int, Trial](), set[int]()
        for due in batch:
            while due.index not in made:
                if stop():  # what runs is worth waiting for, as in one process
                    queue.clear()
                    if all(one.proposal != due for one in self._busy.values()):
                        return
                while queue and self._idle:
                    self._submit(self._idle.pop(0), queue.popleft())
                for proposal, outcome in self._ended():
                    if isinstance(outcome, Trial):
                        made[proposal.index] = outcome
                    elif proposal.index in again:
                        made[proposal.index] = _failed(proposal, outcome)
                    else:
                        again.add(proposal.index)
                        queue.appendleft(proposal)
            yield made.pop(due.index)
        self.lap()

    def close(self) -> None:
        """Ends all workers."""
        for worker in [*self._idle, *self._busy.values()]:
            self.ray.kill(worker.actor)
        self._idle, self._busy = [], {}

    def _start(self) -> None:
        actor = self.spawn()
        self._busy[actor.ready.remote()] = _Worker(actor)

    def _submit(self, worker: _Worker, proposal: Proposal) -> None:
        worker.proposal = proposal
        self._busy[worker.actor.attempt.remote(proposal)] = worker

    def _ended(self) -> list[tuple[Proposal, Trial | str]]:
        """Waits a while for a worker; gives the trial that it made, or why it made none."""
        done, _ = self.ray.wait(list(self._busy), num_returns=1, timeout=_LOOK)
        if not done:
            self._check_room()
            return []
        worker = self._busy.pop(done[0])
        proposal, worker.proposal = worker.proposal, None
        try:
            found = self.ray.get(done[0])
        except self.ray.exceptions.RayError as error:
            return self._replace(worker, proposal, error)
        if proposal is not None:
            self._idle.append(worker)
            return [(proposal, found)]
        if worker.runs:  # it has read the models
            self._lost = 0
            self._idle.append(worker)
        else:
            worker.runs = True
            self._busy[worker.actor.begin.remote(*self.state)] = worker
        return []

    def _replace(
        self, worker: _Worker, proposal: Proposal | None, error: Exception
    ) -> list[tuple[Proposal, Trial | str]]:
        raised = isinstance(error, self.ray.exceptions.RayTaskError)
        cause = getattr(error, "cause", None) or error
        reason = f"{type(cause).__name__}: {shortened(cause, 200)}"
        if proposal is None and worker.runs and raised:
            raise UserError(f"--optimizer.parallel: a worker cannot begin: {reason}") from error
        self._lost += proposal is None
        if self._lost == _LOST_AT_ONCE:
            raise UserError(
                f"--optimizer.parallel: {_LOST_AT_ONCE} workers in a row were lost before they "
                f"could begin, as where memory is short; give a smaller number ({reason})"
            ) from error
        self.ray.kill(worker.actor)  # what has failed there may have harmed it
        self._start()
        if proposal is None:
            return []
        return [(proposal, reason if raised else "its worker was lost, as where memory is short")]

    def _check_room(self) -> None:
        now = time.monotonic()
        if self._idle or any(one.runs for one in self._busy.values()):
            self._since = now
        if now - self._since > _ROOM:
            raise UserError(
                f"--optimizer.parallel: no worker was given room in {_ROOM:.0f} s; 'ray status' "
                "tells what the cluster is busy with. Finished trials are saved"
            )


def _failed(proposal: Proposal, reason: str) -> Trial:
    return Trial(
        proposal.index,
        proposal.coefficients,
        status="failed",
        reason=f"on two workers: {reason}",
        method=proposal.method,
    )
