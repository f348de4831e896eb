"""Two tasks in memory and a live module that scores them."""

from lightning.pytorch import Trainer

from fmerge.data import MultiTask, TaskData
from fmerge.evaluation.evaluator import Evaluator
from fmerge.modules import TextClassifier
from tests import tiny


class Given(TaskData):
    """Examples that are given by split."""

    def __init__(self, labels, metrics=("accuracy",), **splits):
        self.names, self.metrics, self.splits = labels, metrics, splits

    @property
    def labels(self):
        return self.names

    def examples(self, split):
        return self.splits.get(split, [])


def examples(n, classes, seed):
    texts = tiny.sentences(n, seed)
    return [{"text": text, "label": (i + len(text)) % classes} for i, text in enumerate(texts)]


def tasks():
    """Colours of three classes; animals of two, scored by two metrics."""
    sizes = {"train": 12, "validation": 40, "test": 7}
    made = {}
    for k, (task, metrics) in enumerate({"colour": 1, "animal": 2}.items()):
        labels = tiny.LABELS[task]
        made[task] = Given(
            labels,
            ("accuracy", "f1")[:metrics],
            **{s: examples(n, len(labels), 10 * k + i) for i, (s, n) in enumerate(sizes.items())},
        )
    return made


def models():
    base = tiny.classifier(tiny.bert_config(), seed=1)
    return {
        task: tiny.fine_tuned(base, labels, 10 + k)
        for k, (task, labels) in enumerate(tiny.LABELS.items())
    }


def make_evaluator(batch_size=4):
    module = TextClassifier()
    module.adopt(models(), tiny.tokenizer())
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    return Evaluator(trainer, module, MultiTask(tasks(), batch_size))
