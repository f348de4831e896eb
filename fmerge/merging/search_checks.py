"""Whether a search, its options and a method fit together: checked before any weights are read."""

from typing import TYPE_CHECKING

from fmerge.errors import UserError
from fmerge.methods import MergeMethod
from fmerge.methods.signs import check_signs
from fmerge.search import Fixed, Search
from fmerge.search.stopping import check_patience

if TYPE_CHECKING:
    from fmerge.merging.optimizer import MergeOptimizer


def check_search(
    optimizer: "MergeOptimizer", search: Search, method: MergeMethod, scored: bool
) -> None:
    """Checks a search.

    Args:
        optimizer: Its options.
        search: The search.
        method: What is merged with.
        scored: Whether there are data to score trials on.

    Raises:
        UserError: If it has nothing to search, no scores, or coefficients that the method cannot
            merge with.
    """
    check_patience(optimizer.search_patience)
    check_batch(optimizer, search)
    if not method.uses_coefficients:
        _check_without_coefficients(optimizer, search, method)
    if not scored:
        _check_without_scores(optimizer, search)
    if not isinstance(search, Fixed):
        check_signs(method, _lowest(optimizer))
        return
    if optimizer.bounds is not None:
        raise UserError(
            "--optimizer.bounds: are of a search, but the coefficients are fixed; leave them out"
        )
    check_signs(method, search.coefficients or {})


def check_batch(optimizer: "MergeOptimizer", search: Search) -> None:
    """Checks whether a search can propose several trials before any of them is scored.

    Args:
        optimizer: Its options.
        search: The search.

    Raises:
        UserError: If it cannot, or the size of a batch is no number from 1.
    """
    options = {"batch": optimizer.batch, "parallel": optimizer.parallel}
    for name, count in options.items():
        if count is None:
            continue
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(
                f"--optimizer.{name}: is {count}, but must be a number of trials from 1"
            )
        reason = search.single
        if optimizer.racing:
            reason = "--optimizer.racing compares each with the best before it"
        if reason and (count > 1 or name == "parallel"):
            raise UserError(
                f"--optimizer.{name}: is {count}, but {type(search).__name__} makes one trial at a "
                f"time: {reason}; leave one of the two out"
            )
    if (optimizer.batch or optimizer.parallel or 1) < (optimizer.parallel or 1):
        raise UserError(
            f"--optimizer.batch: is {optimizer.batch}, so that no {optimizer.parallel} trials "
            "(--optimizer.parallel) are known at a time; give at least as many, or leave it out"
        )


def fixed(
    coefficients: dict[str, float], optimizer: "MergeOptimizer", method: MergeMethod
) -> Fixed:
    """Makes the search of one trial that has the coefficients of ``--coefficients``.

    Args:
        coefficients: λ by expert or by ``expert/group``.
        optimizer: Its options.
        method: What is merged with.

    Returns:
        The search.

    Raises:
        UserError: If there is another search, or the method has no coefficients.
    """
    if optimizer.search is not None:
        raise UserError(
            "--coefficients: are given, and so is --optimizer.search, which would look for them; "
            "leave one of the two out"
        )
    if not method.uses_coefficients:
        name = type(method).__name__
        instead = "; Isotropic is the weighted average" if name == "Average" else ""
        raise UserError(f"--coefficients: {name} uses none; leave them out{instead}")
    return Fixed(coefficients)


def _lowest(optimizer: "MergeOptimizer") -> dict[str, float]:
    """The least coefficient by expert."""
    given = optimizer.bounds or {}
    if not isinstance(given, dict):
        given = {"each expert": given}
    return {name: pair[0] for name, pair in given.items()}


def _check_without_coefficients(
    optimizer: "MergeOptimizer", search: Search, method: MergeMethod
) -> None:
    name = type(method).__name__
    if not isinstance(search, Fixed):
        raise UserError(
            f"{type(search).__name__}: {name} has no coefficients to search; "
            "name another --method, or leave --optimizer.search out"
        )
    if optimizer.groups != "whole":
        raise UserError(f"--optimizer.groups: {name} has no coefficients to divide")


def _check_without_scores(optimizer: "MergeOptimizer", search: Search) -> None:
    if not isinstance(search, Fixed):
        raise UserError(
            f"{type(search).__name__}: needs data to score its trials on; give --data, or "
            "fix the coefficients with --optimizer.search Fixed"
        )
    if optimizer.racing:
        raise UserError("--optimizer.racing: needs data to score on; give --data")
    if optimizer.needs_experts or optimizer.weights or optimizer.objective != "mean":
        raise UserError(
            "--optimizer: objective, weights and keep need data to score on; give --data"
        )
