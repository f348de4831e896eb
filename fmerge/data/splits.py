"""Tasks that have the splits that something is given for."""

from abc import ABC
from collections.abc import Collection

from typing_extensions import override

from fmerge.data.examples import Split, TaskData
from fmerge.errors import UserError


class GivenSplits(TaskData, ABC):
    """A task that has the splits that something is given for.

    Args:
        splits: Their names.
    """

    def __init__(self, splits: Collection[str]) -> None:
        self._splits = splits

    @override
    def has(self, split: Split) -> bool:
        return split in self._splits

    def check_given(self, split: str) -> None:
        """Checks that there are files for a split.

        Args:
            split: Which one.

        Raises:
            UserError: If no file is given for it.
        """
        if split not in self._splits:
            name = type(self).__name__
            raise UserError(f"{name}: no file is given for the {split} split; set {split}")
