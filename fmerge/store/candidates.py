"""Candidates that coefficients alone cannot make again: a body and heads, in one file."""

from collections.abc import Mapping
from pathlib import Path

from fmerge.errors import UserError
from fmerge.params import Params
from fmerge.store.partial import begun_with, read_partial, write_partial

_TRIAL = "trial"


def write_candidate(path: Path, trial: int, body: Params, heads: Mapping[str, Params]) -> None:
    """Writes a candidate whole or not at all.

    Args:
        path: The file; an old one is replaced.
        trial: Index of the trial that scored it.
        body: Body tensors by name.
        heads: Task name to the tensors of its head.
    """
    tensors = {f"body/{name}": tensor for name, tensor in body.items()}
    for task, head in heads.items():
        tensors |= {f"head/{task}/{name}": tensor for name, tensor in head.items()}
    write_partial(path, {_TRIAL: trial}, tensors)


def candidate_trial(path: Path) -> int | None:
    """Reads which trial a file is the candidate of.

    Args:
        path: The file, which may be absent.

    Returns:
        The trial's index; None where there is no candidate.
    """
    found = begun_with(path, {}, _TRIAL)
    return found if isinstance(found, int) else None


def read_candidate(path: Path, trial: int) -> tuple[Params, dict[str, Params]]:
    """Reads a candidate back.

    Args:
        path: The file.
        trial: Index of the trial that scored it.

    Returns:
        The body, and task name to the tensors of its head.

    Raises:
        UserError: If the file is absent, damaged, or another trial's.
    """
    tensors = read_partial(path, {_TRIAL: trial})
    if tensors is None:
        raise UserError(
            f"{path}: does not hold the weights of trial {trial}; begin anew with --overwrite true"
        )
    body: Params = {}
    heads: dict[str, Params] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "body":
            body[rest] = tensor
        else:
            task, _, name = rest.partition("/")
            heads.setdefault(task, {})[name] = tensor
    return body, heads
