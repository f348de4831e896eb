"""Data of a few examples of some tasks, on which a pass is tried."""

from collections.abc import Callable, Sequence

from fmerge.data.examples import Example, Split, TaskData, length
from fmerge.data.tasks import MultiTask

Choose = Callable[[Sequence[Example]], Sequence[Example]]


class Excerpt(TaskData):
    """Some of a task's examples.

    Args:
        task: The task.
        choose: Picks them out of a split.
    """

    def __init__(self, task: TaskData, choose: Choose) -> None:
        self.metrics = task.metrics
        self._task = task
        self._choose = choose

    @property
    def labels(self) -> list[str]:
        """Those of the task."""
        return self._task.labels

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads the examples that were chosen.

        Args:
            split: Which split.

        Returns:
            Some of that split's.
        """
        return self._choose(self._task.examples(split))


def longest(data: MultiTask, tasks: Sequence[str], size: int) -> MultiTask:
    """Makes the batch of each task that takes the most memory.

    Args:
        data: The tasks.
        tasks: Which of them.
        size: Examples in the batch.

    Returns:
        Data whose splits are one batch of the longest examples.
    """

    def choose(examples: Sequence[Example]) -> Sequence[Example]:
        return sorted(examples, key=length)[-size:]

    return _one_batch(data, tasks, size, choose)


def typical(data: MultiTask, task: str, size: int, processes: int) -> MultiTask:
    """Makes one batch of a task as a pass will have many: neighbours of middling length.

    Args:
        data: The tasks.
        task: Which of them.
        size: Examples in the batch.
        processes: How many have a batch each.

    Returns:
        Data whose splits are that batch.
    """
    taken = size * processes

    def choose(examples: Sequence[Example]) -> Sequence[Example]:
        # the middle of the lengths: the time of a batch of them is near the mean time
        first = max(0, (len(examples) - taken) // 2)
        return sorted(examples, key=length)[first : first + taken]

    return _one_batch(data, [task], size, choose)


def _one_batch(data: MultiTask, tasks: Sequence[str], size: int, choose: Choose) -> MultiTask:
    excerpt = MultiTask({name: Excerpt(data.tasks[name], choose) for name in tasks}, size)
    excerpt.trainer = data.trainer
    return excerpt
