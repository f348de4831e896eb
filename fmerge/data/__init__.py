"""Task data: one ``TaskData`` per task, several side by side in ``MultiTask``."""

from fmerge.data.blocks import BLOCKS
from fmerge.data.docs import DocsTopics
from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.files import TextFiles
from fmerge.data.glue import Glue
from fmerge.data.prompts import Prompted
from fmerge.data.squad import Squad2
from fmerge.data.tasks import MultiTask

__all__ = [
    "BLOCKS",
    "DocsTopics",
    "Example",
    "Glue",
    "MultiTask",
    "Prompted",
    "Split",
    "Squad2",
    "TaskData",
    "TextFiles",
]
