"""Which worker makes which trial, and what becomes of one that is lost; Ray itself is made up."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from fmerge.errors import UserError
from fmerge.merging.trials import Proposal
from fmerge.runs import ray_pool
from fmerge.runs.ray_pool import RayPool
from fmerge.search import Trial

BATCH = [Proposal(i, {"x": float(i)}) for i in range(5)]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class ActorDiedError(RayError):
    pass


@dataclass(eq=False)
class Task:
    """What an actor was asked for: a value, an error, or nothing yet."""

    actor: "Actor"
    name: str
    arguments: tuple
    seen: bool = False
    fails: bool = False


@dataclass(eq=False)
class Actor:
    """Says what it was asked; each call is a task that ends when the made-up Ray lets it."""

    number: int
    killed: bool = False

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: Task(self, name, given))


@dataclass
class FakeRay:
    """Ends one task at a time, of trials the last begun first, so that they end out of order."""

    does: Callable[[Task], object] = lambda task: None
    actors: list = field(default_factory=list)
    made: list = field(default_factory=list)
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def spawn(self):
        self.actors.append(Actor(len(self.actors)))
        return self.actors[-1]

    def wait(self, tasks, num_returns, timeout):
        able = [one for one in tasks if self.does(one) != "waits"]
        able.sort(key=lambda one: one.name != "attempt")  # others first
        return able[-1:], []

    def get(self, task):
        if task.name == "attempt":
            (proposal,) = task.arguments
            self.made.append((proposal.index, task.actor.number))
        found = self.does(task)
        if isinstance(found, Exception):
            raise found
        if task.name == "attempt":
            return Trial(proposal.index, proposal.coefficients, 1.0 + proposal.index)
        return None

    def kill(self, actor):
        actor.killed = True


def pool_of(fake, count=2, **options):
    return RayPool(ray=fake, spawn=fake.spawn, state=("job", "numbers"), count=count, **options)


def run(fake, count=2, stop=lambda: 0, **options):
    pool = pool_of(fake, count, **options)
    found = list(pool.run(BATCH, stop))
    return pool, found


def test_trials_come_in_the_order_of_the_batch_whatever_ends_first():
    laps, fake = [], FakeRay()
    pool, found = run(fake, lap=lambda: laps.append(1))
    assert [one.index for one in found] == [0, 1, 2, 3, 4] and len(laps) == 1
    assert [one.coefficients for one in found] == [one.coefficients for one in BATCH]
    assert [index for index, _ in fake.made] != [0, 1, 2, 3, 4], "they ended in order"
    assert {number for _, number in fake.made} == {0, 1}
    # the workers stay for the next batch, and hold the models
    assert [one.index for one in pool.run(BATCH[:1], lambda: 0)] == [0] and len(fake.actors) == 2
    pool.close()
    assert all(one.killed for one in fake.actors)


def losing(times, error):
    """Trial 1 ends with an error, so many times."""
    left = itertools.count()

    def does(task):
        if task.name == "attempt" and task.arguments[0].index == 1 and not task.seen:
            task.seen, task.fails = True, next(left) < times
        return error if task.fails else None

    return does


@pytest.mark.parametrize("error", [ActorDiedError("end of file"), RayTaskError(OSError("cuda"))])
def test_a_trial_that_is_lost_is_made_again_by_another_worker(error):
    fake = FakeRay(losing(1, error))
    _, found = run(fake)
    assert found == run(FakeRay())[1]
    makers = [number for index, number in fake.made if index == 1]
    assert len(makers) == len(set(makers)) == 2
    assert fake.actors[makers[0]].killed and len(fake.actors) == 3, "it was not replaced"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ActorDiedError("gone"), "on two workers: its worker was lost, as where memory is short"),
        (RayTaskError(OSError("cuda")), "on two workers: OSError: cuda"),
    ],
)
def test_a_trial_that_is_lost_twice_has_failed(error, reason):
    _, found = run(FakeRay(losing(2, error)))
    assert [one.status for one in found] == ["ok", "failed", "ok", "ok", "ok"]
    assert found[1].reason == reason and found[1].coefficients == {"x": 1.0}


def test_a_lost_machine_makes_the_pool_smaller():
    """The second worker is lost with its trial, and nothing has room for another one."""

    def does(task):
        if task.actor.number == 1 and task.name == "attempt":
            return ActorDiedError("the node is gone")
        return "waits" if task.actor.number == 2 else None

    fake = FakeRay(does)
    _, found = run(fake)
    assert [one.status for one in found] == ["ok"] * 5
    assert {number for _, number in fake.made[1:] if number != 1} == {0}


def test_a_request_to_stop_waits_for_what_runs():
    asked, fake = [], FakeRay()

    def stop():
        asked.append(1)
        return 15 if fake.made else 0  # after the first trial has ended, while another one runs

    _, found = run(fake, stop=stop)
    assert [one.index for one in found] == [0, 1] and len(fake.made) == 2


def test_workers_that_cannot_begin_end_the_run():
    def broken(task):
        return RayTaskError(UserError("no such file")) if task.name == "begin" else None

    with pytest.raises(UserError, match="a worker cannot begin: UserError: no such file"):
        run(FakeRay(broken))

    def dying(task):
        return ActorDiedError("killed") if task.name == "begin" else None

    with pytest.raises(UserError, match="3 workers in a row were lost before they could begin, as"):
        run(FakeRay(dying))


def test_a_cluster_without_room_is_given_up(monkeypatch):
    now = itertools.count(0, 100)
    monkeypatch.setattr(ray_pool.time, "monotonic", lambda: next(now))
    with pytest.raises(UserError, match="no worker was given room in 300 s; 'ray status'"):
        run(FakeRay(lambda task: "waits"))
    # reading the models may take as long as it takes
    calls = itertools.count()
    slow = FakeRay(lambda task: "waits" if task.name == "begin" and next(calls) < 40 else None)
    assert len(run(slow)[1]) == 5
