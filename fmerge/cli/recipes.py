"""``fmerge merge --mergekit recipe.yml``: a recipe of mergekit as options of a merge."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from fmerge.errors import UserError, shortened
from fmerge.methods.recipe import Recipe, read_recipe
from fmerge.system.paths import expand

_OPTION: Final = "--mergekit"
_GIVEN: Final = ("experts", "base", "method", "coefficients", "dtype")
"""What a recipe says itself."""

_KINDS: Final = {
    "CausalLM|LMHead|ConditionalGeneration": "fmerge.modules.RankChoice",
    "QuestionAnswering": "fmerge.modules.SpanAnswers",
}
"""Architectures of a model to the module that reads it."""


def with_recipe(args: Sequence[str]) -> list[str]:
    """Replaces the option of a recipe by what it says.

    Args:
        args: The command line.

    Returns:
        It with experts, base, method and dtype; as it is where no recipe is given.

    Raises:
        UserError: If the file is no recipe that is supported, or an option says the same.
    """
    options = [one.partition("=")[0] for one in args]
    if _OPTION not in options or "merge" not in args:
        return list(args)
    place = options.index(_OPTION)
    _, equals, joined = args[place].partition("=")
    path = Path(expand(joined if equals else (*args[place + 1 :], "")[0]))
    rest = [*args[:place], *args[place + (1 if equals else 2) :]]
    for name in _GIVEN:
        if any(re.match(rf"--{name}(\.|$)", one) for one in options):
            raise UserError(f"{_OPTION}: the recipe says it already; leave --{name} out")
    tree = _read(path)
    try:
        recipe = read_recipe(tree)
    except UserError as error:
        raise UserError(f"{_OPTION} {path}: {error}") from error
    return [*rest, *_options(recipe, tree, options)]


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{_OPTION} {path}: no such file")
    try:
        return yaml.safe_load(path.read_bytes())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = shortened(error, 200)
        raise UserError(f"{_OPTION} {path}: is no YAML ({reason})") from error


def _options(recipe: Recipe, tree: Any, given: Sequence[str]) -> list[str]:
    # by the class's path: the recipe itself, not its file, is in the run's configuration
    method = {"class_path": "fmerge.methods.mergekit.Mergekit", "init_args": {"recipe": tree}}
    found = [f"--experts={json.dumps(_named(recipe.models))}", f"--method={json.dumps(method)}"]
    if recipe.kind.needs_base:
        found.append(f"--base={recipe.base}")
    if (dtype := recipe.out_dtype or recipe.dtype) is not None:
        found.append(f"--dtype={dtype}")
    if not any(re.match(r"--model(\.|$)", one) for one in given):
        kind = _kind(expand(recipe.models[0]))
        found += [f"--model={kind}"] if kind else []
    return found


def _named(models: Sequence[str]) -> dict[str, str]:
    """Models by names that folders and tasks may have: the last part of each path."""
    found: dict[str, str] = {}
    for number, model in enumerate(models, 1):
        name = re.sub(r"[^\w-]", "_", Path(model).name) or "model"
        found[f"{name}_{number}" if name in found else name] = model
    return found


def _kind(model: str) -> str | None:
    """The module of a local model, told from its config; None where it is the usual one."""
    config = Path(model) / "config.json"
    if not config.is_file():
        return None
    try:
        names = json.loads(config.read_bytes()).get("architectures") or [""]
    except (ValueError, AttributeError):
        return None  # which is refused where the model is read
    return next((kind for part, kind in _KINDS.items() if re.search(part, str(names[0]))), None)
