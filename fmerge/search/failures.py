"""Searches that no coefficients can help, because every trial fails for one reason."""

import re

from fmerge.errors import UserError
from fmerge.search.base import Search

ALIKE = 3
"""A search ends when this many first trials of a run have failed for one reason."""


def check_failures(search: Search, begun: int) -> None:
    """Ends a search whose first trials have all failed alike.

    Args:
        search: The search.
        begun: How many trials it had when this run began: others may have failed for want of
            what is there now.

    Raises:
        UserError: If no trial has succeeded, and all of this run, at least ``ALIKE``, have failed
            for reasons that differ by numbers alone.
    """
    history = search.history
    if len(history) - begun < ALIKE or any(trial.status != "failed" for trial in history):
        return
    # the numbers in a reason, such as coefficients and sizes, are each trial's own
    reasons = {re.sub(r"[-+.\w]*\d[-+.\w]*", "#", trial.reason) for trial in history[begun:]}
    if len(reasons) == 1 and not search.finished:
        raise UserError(
            f"{ALIKE} trials have failed alike and none has succeeded, so that the other "
            f"{search.budget - len(history)} were not tried: {history[-1].reason}"
        )
