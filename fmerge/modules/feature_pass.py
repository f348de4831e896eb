"""The inputs of a task's last linear layer: the features on which its head can be refitted."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fmerge.errors import UserError
from fmerge.modules.classification import Classifier
from fmerge.modules.tokenized import model_inputs
from fmerge.params import last_linear

_CLOSE = 1e-2
"""Distance of the layer's outputs from the logits, as a share of the largest: bf16 rounds so."""


@final
class FeaturePass(LightningModule):
    """Collects the inputs of a task's last linear layer, under ``Trainer.predict``.

    A hook makes the layer return its inputs instead of its outputs. What a model then selects
    from the outputs, such as those of the last token, it selects from the features.

    Args:
        module: The classifier, with the body whose features are wanted.
        task: The task.

    Attributes:
        name: The layer's name in the task's network.
        layer: The layer.
        ends_head: Whether the logits of the first batch were the layer's outputs, unchanged.

    Raises:
        UserError: If the task's head has no linear layer.
    """

    def __init__(self, module: Classifier, task: str) -> None:
        super().__init__()
        self.module = module
        self.task = task
        found = last_linear(module.task_model(task))
        if found is None:
            raise UserError(f"the head of task '{task}' has no linear layer to refit")
        self.name, self.layer = found
        self.ends_head = True
        self._checked = False

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
        """Runs the classifier and returns the layer's inputs.

        Args:
            batch: One batch of the task.
            batch_idx: The batch's index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning.

        Returns:
            Features (n, i), at least float32, and labels (n,), on the CPU.
        """
        hook = self.layer.register_forward_hook(lambda _, inputs, outputs: inputs[0])
        try:
            features = self._logits(batch)
        finally:
            hook.remove()
        # one batch is enough: whether something follows the layer is a property of the model
        if not self._checked:
            self.ends_head = self._is_all(batch, features)
            self._checked = True
        exact = torch.promote_types(features.dtype, torch.float32)
        return features.to("cpu", exact), batch["labels"].cpu()

    def _logits(self, batch: Mapping[str, Any]) -> Tensor:
        model = self.module.task_model(self.task)
        logits: Tensor = model(**model_inputs(model, batch)).logits
        return logits

    def _is_all(self, batch: Mapping[str, Any], features: Tensor) -> bool:
        logits = self._logits(batch).float()
        if features.dim() != 2 or features.shape[1] != self.layer.in_features:
            return False
        distance = (self.layer(features).float() - logits).abs().max()
        # also True for NaN: the fit refuses features that are not finite, and says why
        return not bool(distance > _CLOSE * logits.abs().max())
