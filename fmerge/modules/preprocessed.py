"""The base of modules whose inputs are made by what travels with a model: tokenizer, processor."""

from abc import ABC
from collections.abc import Mapping
from typing import Any

from fmerge.modules.fine_tuned import FineTuned


class PreprocessedModule(FineTuned, ABC):
    """A task module whose inputs are made for each task by its own preprocessor.

    Attributes:
        preprocessors: Task name to its preprocessor; empty until the weights are read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.preprocessors: dict[str, Any] = {}

    def adopt_preprocessors(self, models: Mapping[str, Any], given: Any) -> None:
        """Takes the preprocessors of some networks, once they are found to fit.

        Args:
            models: Task name to network.
            given: The preprocessor they share, or task name to that of each.
        """
        shared = not isinstance(given, Mapping)
        found = dict.fromkeys(models, given) if shared else {task: given[task] for task in models}
        for task, model in models.items():
            source = getattr(model, "name_or_path", "") or f"task '{task}'"
            self.check_preprocessor(model, found[task], source)
        self.preprocessors = found

    def preprocessor_of(self, task: str) -> Any:
        """Finds a task's preprocessor.

        Args:
            task: The task's name.

        Returns:
            Its own.

        Raises:
            RuntimeError: If the weights were not read yet.
        """
        if not self.preprocessors:
            raise RuntimeError(
                f"the {self.reads.word} is read by configure_model or adopt: call one first"
            )
        return self.preprocessors[task]
