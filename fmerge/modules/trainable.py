"""Which models can be differentiated on batches of texts."""

from torch import nn

from fmerge.errors import UserError

_REFUSED = {
    "reformer": "it gives gradients in training mode alone, and there only on texts of one length "
    "that its configuration sets (axial_pos_shape)",
}
"""Model types that cannot be, and why."""


def check_trainable(model: nn.Module, task: str) -> None:
    """Checks that a task's network can be fine-tuned, and its Fisher estimated.

    Args:
        model: The network.
        task: The task's name, for the message.

    Raises:
        UserError: If its architecture allows neither.
    """
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if reason := _REFUSED.get(kind):
        raise UserError(
            f"task '{task}': a {kind} can be neither fine-tuned nor given a Fisher here, since "
            f"{reason}; merge its experts by a method without Fishers, such as Average or RegMean"
        )
