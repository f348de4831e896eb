"""What the base already knows: a task's last linear layer refitted on the base's features."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fmerge.modules.classification import TextClassifier
from fmerge.modules.metrics import make_metric

REGULARISATION = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Inverse strengths C that are tried on the validation split."""


@final
class HeadInputs(LightningModule):
    """Collects the inputs of a task's last linear layer, under ``Trainer.predict``.

    Args:
        module: The classifier, with the body whose features are wanted.
        task: The task.

    Raises:
        ValueError: If the task's head has no linear layer.
    """

    def __init__(self, module: TextClassifier, task: str) -> None:
        super().__init__()
        self.module = module
        model = module.task_model(task)
        body = set(model.base_model.modules())
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in body]
        if not linear:
            raise ValueError(f"the head of task '{task}' has no linear layer to refit")
        self._last = linear[-1]

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Makes a batch as the classifier does.

        Args:
            examples: n examples.
            task: The task's name.

        Returns:
            The batch.
        """
        return self.module.collate(examples, task)

    def predict_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Runs the classifier and catches what enters the layer.

        Args:
            batch: One batch of the task.
            batch_idx: Not used.
            dataloader_idx: Not used.

        Returns:
            Features (n, i) in float32 and labels (n,), on the CPU.
        """
        caught: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.module.label_log_probs(batch)
        finally:
            hook.remove()
        return caught[0].float().cpu(), batch["labels"].cpu()


def probe_score(
    splits: Mapping[str, Sequence[tuple[Tensor, Tensor]]], metrics: Sequence[str] = ("accuracy",)
) -> float:
    """Fits a logistic regression on features, its strength chosen on the validation split.

    Args:
        splits: ``train``, ``validation`` and ``test``, each a list of features (n, i) and
            labels (n,).
        metrics: Names of the task's metrics.

    Returns:
        Their mean on the test split.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    arrays = {
        split: tuple(torch.cat(column).numpy() for column in zip(*batches, strict=True))
        for split, batches in splits.items()
    }
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(
            *arrays["train"]
        )
        for strength in REGULARISATION
    ]
    classes = 1 + max(int(labels.max()) for _, labels in arrays.values())

    def score(classifier: Any, split: str) -> float:
        features, labels = arrays[split]
        predictions = torch.from_numpy(classifier.predict(features))
        made = [make_metric(name, max(classes, 2)) for name in metrics]
        found = [float(metric(predictions, torch.from_numpy(labels))) for metric in made]
        return sum(found) / len(found)

    return score(max(fitted, key=lambda one: score(one, "validation")), "test")
