"""Task data: one ``TaskData`` per task, several side by side in ``MultiTask``."""

from fmerge.data.docs import DocsTopics
from fmerge.data.files import TextFiles
from fmerge.data.prompts import Prompted
from fmerge.data.tasks import Example, MultiTask, Split, TaskData

__all__ = ["DocsTopics", "Example", "MultiTask", "Prompted", "Split", "TaskData", "TextFiles"]
