"""Whether the coefficients of a method can be learned: tried on small tensors."""

import torch

from fmerge.errors import UserError
from fmerge.methods import MergeMethod
from fmerge.methods.inputs import MergeInputs
from fmerge.params import Params


def check_gradient(method: MergeMethod, option: str) -> None:
    """Checks that a method's coefficients can be learned, on small tensors.

    The gradient of a random linear function of a merge is compared with central differences in
    float64.

    Args:
        method: The method.
        option: The option that asks for it, for the message.

    Raises:
        UserError: If the method has no coefficients, or no such gradient.
    """
    name = type(method).__name__
    if not method.uses_coefficients:
        raise UserError(f"{option}: {name} has no coefficients to learn; try TaskArithmetic")
    if method.statistic is not None:
        raise UserError(
            f"{option}: {name} weighs by a statistic of the experts, through which no coefficients "
            "are learned; try TaskArithmetic"
        )
    generator = torch.Generator().manual_seed(0)

    def draw() -> Params:
        return {"layer.0.weight": torch.randn(6, 5, generator=generator, dtype=torch.float64)}

    base, experts, gradient, h = draw(), [draw(), draw(), draw()], draw(), 1e-5
    at = [0.5, 0.25, 0.375]

    def value(m: int, shift: float) -> float:
        moved = [one + shift * (i == m) for i, one in enumerate(at)]
        merged = method.merge(base, experts, moved)
        return float(sum((merged[key] * one).sum() for key, one in gradient.items()))

    try:
        found = method.pull_back(MergeInputs(base, experts, at), gradient)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{option}: the coefficients of {name} cannot be learned ({reason}); try TaskArithmetic"
        ) from error
    expected = [(value(m, h) - value(m, -h)) / (2 * h) for m in range(len(experts))]
    if not torch.allclose(found, torch.tensor(expected, dtype=torch.float64), 1e-5, 1e-6):
        raise UserError(
            f"{option}: the coefficients of {name} cannot be learned: its gradient is "
            f"{found.tolist()}, but differences say {expected}; try TaskArithmetic"
        )
