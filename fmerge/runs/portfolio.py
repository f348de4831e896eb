"""A portfolio of methods in one run: an assembler for each, and statistics that they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fmerge.errors import UserError, counted
from fmerge.merging.assembler import Assembler
from fmerge.methods import Auto, Average, MergeMethod
from fmerge.params import Params
from fmerge.runs.finish import finish_of
from fmerge.search import AxSearch, Search, SearchSpace
from fmerge.search.portfolio import PortfolioSearch
from fmerge.store import FisherCache, RunFolder

if TYPE_CHECKING:
    from fmerge.merging.optimizer import MergeOptimizer
    from fmerge.runs.merge import MergeRun


def search_of(method: MergeMethod, optimizer: "MergeOptimizer") -> Search | None:
    """Makes the search over a portfolio.

    Args:
        method: The run's method.
        optimizer: Its options.

    Returns:
        The search; None where the method is a single one.

    Raises:
        UserError: If the options do not fit a portfolio.
    """
    if not isinstance(method, Auto):
        return None
    given = optimizer.search
    if given is not None and not isinstance(given, AxSearch):
        raise UserError(
            f"{type(given).__name__}: is no search over methods; leave --optimizer.search out, or "
            "give --optimizer.search.trials"
        )
    refused = {
        "racing": optimizer.racing,
        "groups": optimizer.groups != "whole",
        "batch": optimizer.batch not in {None, 1},
        "parallel": optimizer.parallel is not None,
        "learn": optimizer.learn is not None,
    }
    for name, value in refused.items():
        if value:
            raise UserError(f"--optimizer.{name}: is of a single method; leave it out with Auto")
    options = {} if given is None else {"trials": given.trials, "seed": given.seed}
    members = method.methods
    return PortfolioSearch(
        {name: one.usual_coefficient for name, one in members.items()},
        frozenset(name for name, one in members.items() if one.uses_coefficients),
        method.leaders,
        **options,
        data_free=frozenset(
            name for name, one in members.items() if one.statistic is None and not one.calibrates
        ),
    )


def members_of(run: "MergeRun") -> Mapping[str, "MergeRun"]:
    """Splits a run into one for each method of its portfolio.

    Args:
        run: The run.

    Returns:
        Method to the run by it alone, with the passes of the whole; ``""`` to the run itself
        where it has a single method.
    """
    if not isinstance(run.method, Auto):
        return {"": run}
    found = {name: replace(run, method=one) for name, one in run.method.methods.items()}
    if run.data is not None:
        for one in found.values():
            one.__dict__["evaluator"] = run.evaluator  # what is known of batch sizes is shared
            one.__dict__["agreement"] = run.agreement  # and what the experts say
    return found


def distinct(runs: Mapping[str, "MergeRun"]) -> Sequence["MergeRun"]:
    """Lists one run for each statistic that any of them estimates.

    Args:
        runs: What ``members_of`` gave.

    Returns:
        The first of those that need the same.
    """
    by_kind = {one.method.statistic: one for one in reversed(list(runs.values()))}
    return [one for kind, one in by_kind.items() if kind is not None]


def portfolio_facts(search: Search) -> list[str]:
    """Says what each part of a search over methods brought.

    Args:
        search: The search.

    Returns:
        A sentence on the race and one on the search; none of another search.
    """
    if not isinstance(search, PortfolioSearch):
        return []
    race, rest = search.history[: len(search.usual)], search.history[len(search.usual) :]
    scores = ", ".join(
        f"{trial.method} "
        + (
            f"failed ({trial.reason})"
            if trial.objective is None
            else f"{100 * trial.objective:.1f}"
        )
        for trial in race
    )
    facts = [f"Auto, race: {counted(len(race), 'trial')}, a method each: {scores}"]
    good = [trial for trial in rest if trial.status == "ok"]
    if good:
        best = max(good, key=search.rank)
        methods = " and ".join(dict.fromkeys(trial.method for trial in rest))
        facts.append(
            f"Auto, search: {counted(len(rest), 'trial')} of {methods}; its best is {best.method}, "
            f"trial {best.index}, {100 * (best.objective or 0.0):.1f}"
        )
    return facts


class Portfolio:
    """The assemblers of a portfolio's methods, made when a trial first needs them.

    Args:
        members: Method to its run.
        space: The space of all coefficients.
        folder: The run's folder.

    """

    def __init__(
        self, members: Mapping[str, "MergeRun"], space: SearchSpace, folder: RunFolder
    ) -> None:
        self.members = members
        self.space = space
        self.folder = folder
        self._made: dict[str, Assembler] = {}
        self._statistics: dict[str, Any] = {}

    def of(self, method: str) -> Assembler:
        """Finds the assembler of a method.

        Args:
            method: Its name.

        Returns:
            The assembler.
        """
        if method not in self._made:
            run = self.members[method]
            kind = run.method.statistic
            if kind is not None and kind not in self._statistics:  # estimated once for all
                self._statistics[kind] = run.statistics()
            statistics = None if kind is None else self._statistics[kind]
            made = assembler_of(run, self.space, self.folder, statistics)
            if made.finish is not None and run.method.calibrates:
                made.finish = _failing_by_name(method, made.finish)
            made.others = self.of
            self._made[method] = made
        return self._made[method]

    def average(self) -> Params:
        """Computes the plain average.

        Returns:
            New tensors.
        """
        return self.of(Average.__name__).average()


def _failing_by_name(method: str, finish: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """Makes a calibration that a model cannot have a trial that failed, not the end of the run."""

    def finished(body: Params) -> Params:
        try:
            return finish(body)
        except torch.OutOfMemoryError:  # of which more is known elsewhere
            raise
        except (RuntimeError, TypeError) as error:  # of networks that no calibration was made for
            reason = " ".join(str(error).split())
            raise UserError(f"{method} cannot calibrate this model: {reason}") from error

    return finished


def assembler_of(
    run: "MergeRun",
    space: SearchSpace,
    folder: RunFolder,
    statistics: Mapping[str, Mapping[str, Any]] | None,
) -> Assembler:
    """Makes the assembler of a run by a single method.

    Args:
        run: The run.
        space: The space of its coefficients.
        folder: Its folder.
        statistics: The experts' statistics that do not move.

    Returns:
        The assembler.
    """
    return Assembler(
        run.method,
        run.ensemble.base,
        run.ensemble.bodies,
        run.estimate,
        statistics,
        parts=space.groups,
        buffers=run.ensemble.moving,
        curve_nodes=run.settings.curve,
        # Fishers are cached where the bodies are, if there is room
        keep=FisherCache(folder.path, run.ensemble.device).put,
        dtypes=next(iter(run.forms.values())).dtypes if run.forms else None,
        finish=finish_of(run),
    )
