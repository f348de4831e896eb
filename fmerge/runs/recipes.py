"""A merge as a recipe of mergekit, where mergekit can make it too."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from fmerge.methods import SLERP, Average, Isotropic, TaskArithmetic
from fmerge.methods.mergekit import Mergekit
from fmerge.report.merge_report import MergeReport
from fmerge.store import write_text

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

RECIPE: Final = "mergekit.yml"
"""The recipe's name in the run's folder."""


def write_recipe(run: "MergeRun", report: MergeReport, folder: Path) -> None:
    """Writes the recipe of a finished merge, if there is one.

    Args:
        run: The merge.
        report: What was chosen.
        folder: The run's folder.
    """
    (folder / RECIPE).unlink(missing_ok=True)  # of the run that --overwrite replaces
    tree = recipe_of(run, report)
    if tree is not None:
        write_text(folder / RECIPE, yaml.safe_dump(tree, sort_keys=False))


def recipe_of(run: "MergeRun", report: MergeReport) -> dict[str, Any] | None:
    """Expresses a merge as a recipe.

    Args:
        run: The merge.
        report: What was chosen.

    Returns:
        The recipe; None where mergekit has no such method, or a stage has changed the weights.
    """
    method, best = run.method, report.search.best
    if isinstance(method, Mergekit):
        return method.recipe
    weights = [best.coefficients.get(name) for name in run.ensemble.names]
    if best.stage or (method.uses_coefficients and None in weights):  # by groups of tensors
        return None
    names, sources = run.ensemble.names, run.ensemble.sources
    models: list[dict[str, Any]] = [{"model": sources[name]} for name in names]
    if isinstance(method, Average):
        return {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
    if isinstance(method, SLERP):
        share = (weights[1] or 0.0) / sum(one or 0.0 for one in weights)
        return {
            "merge_method": "slerp",
            "base_model": sources[names[0]],
            "models": models,
            "parameters": {"t": share},
        }
    if not isinstance(method, Isotropic | TaskArithmetic):
        return None
    for model, weight in zip(models, weights, strict=True):
        model["parameters"] = {"weight": weight}
    if isinstance(method, Isotropic):
        return {"merge_method": "linear", "models": models}
    base = run.ensemble.base_source
    return {"merge_method": "task_arithmetic", "base_model": base, "models": models}
