"""A run's configuration, compared with the one that its folder was made with."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fmerge.errors import UserError, shortened

_IGNORED = (
    *(
        "output",
        "overwrite",
        "dry_run",
        "config",
        "build",
        "max_shard_size",
        "optimizer.search_patience",
        "optimizer.parallel",
        "optimizer.ray_address",
        "push_to_hub",
        "push_private",
    ),
    *("trainer.callbacks", "trainer.enable_progress_bar"),
)
"""Options that may differ when a run is resumed: they change no trial."""

_RENAMED = {"references": "baselines"}
"""Former names of options, which the config.yaml of an older run has."""

_ADDED = {
    "optimizer.loss": "experts",
    "optimizer.steps": 100,
    "optimizer.learning_rate": 0.01,
    "optimizer.examples": 512,
    "optimizer.patience": 5,
    "polish_steps": 0,
    "polish_loss": "experts",
    "polish_anchor": 0.0,
    "polish_learning_rate": 3e-4,
    "labels": "all",
}
"""Options that an older run's config.yaml lacks, and their defaults: it went without them."""

_NEW = ("optimizer.search.init_args.coordinates",)
"""Options that older versions lacked, and whose runs say themselves whether they fit them."""

TRIALS = "optimizer.search.init_args.trials"
"""The option that may grow: a run with more trials begins with those of the run with fewer."""


def resolved(tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a configuration, under the present names of its options.

    Args:
        tree: The configuration, as YAML gives it.
        defaults: Name of a section to what holds where a configuration does not have it. Older
            versions left out a section that was not given. A section that is there is taken as it
            is, as options that are null are never written.

    Returns:
        Dotted name of each option to its value.
    """
    given = {_RENAMED.get(key, key): value for key, value in tree.items() if value is not None}
    return flat({**defaults, **given})


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Names the first option by which two configurations give different runs.

    Args:
        old: Dotted name to value, of the run in the folder.
        new: Dotted name to value, of the present command.

    Returns:
        The option and both values; empty if there is none.
    """
    old, new = _with_batch(old), _with_batch(new)
    for key in sorted(old.keys() | new.keys()):
        # prefixes: "trainer.callbacks" stands for all options of all callbacks
        if key.startswith(_IGNORED) or (key in _NEW and key not in old):
            continue
        before, now = (one.get(key, _ADDED.get(key)) for one in (old, new))
        if before != now:
            return f"{key} was {before} and is {now}"
    return ""


def _with_batch(options: Mapping[str, Any]) -> Mapping[str, Any]:
    # as many trials are proposed at a time as are made side by side, unless it is said
    return {"optimizer.batch": options.get("optimizer.parallel", 1), **options}


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested mappings.

    Args:
        tree: Name to value or to a mapping.

    Returns:
        Dotted name to value; an empty mapping is a value.
    """
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def read_mapping(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    """Reads a file of a run that holds options or facts by name.

    Args:
        path: The file.
        parse: Reads its text.

    Returns:
        What it holds.

    Raises:
        UserError: If it is damaged.
    """
    reason = ""
    try:
        found = parse(path.read_bytes().decode())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        found, reason = None, shortened(error, 200)
    if found is not None and not isinstance(found, Mapping):
        reason = f"it holds {type(found).__name__}"
    if reason:
        raise UserError(
            f"{path}: is damaged ({reason}); mend it, or begin anew with --overwrite true"
        )
    return found or {}
