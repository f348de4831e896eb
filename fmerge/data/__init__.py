"""Task data: one ``TaskData`` per task, several side by side in ``MultiTask``.

Examples:
    >>> from fmerge.data import MultiTask, TextFiles
    >>> data = MultiTask({"a": TextFiles(train="a_train.csv", test="a_test.csv")}, batch_size=8)
    >>> data.labels
    {'a': ['cold', 'none', 'warm']}
    >>> len(data.tasks["a"].examples("train"))
    20
"""

from fmerge.data.blocks import BLOCKS
from fmerge.data.chats import Chats, PlainText
from fmerge.data.digits import Digits
from fmerge.data.docs import DocsText, DocsTopics
from fmerge.data.docs_matches import DocsMatches
from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.files import TextFiles
from fmerge.data.glue import Glue
from fmerge.data.image_sets import ImageSet
from fmerge.data.images import ImageFiles
from fmerge.data.pairs import PairFiles
from fmerge.data.prompts import Prompted
from fmerge.data.squad import Squad2
from fmerge.data.tagged import TagFiles
from fmerge.data.tasks import MultiTask

__all__ = [
    "BLOCKS",
    "Chats",
    "Digits",
    "DocsMatches",
    "DocsText",
    "DocsTopics",
    "Example",
    "Glue",
    "ImageFiles",
    "ImageSet",
    "MultiTask",
    "PairFiles",
    "PlainText",
    "Prompted",
    "Split",
    "Squad2",
    "TagFiles",
    "TaskData",
    "TextFiles",
]
