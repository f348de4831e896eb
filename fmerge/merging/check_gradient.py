"""Whether the coefficients of a method can be learned: tried on small tensors."""

import torch

from fmerge.errors import UserError, shortened
from fmerge.methods import MergeMethod
from fmerge.methods.inputs import MergeInputs
from fmerge.params import Params


def check_gradient(method: MergeMethod, option: str, count: int = 3) -> None:
    """Checks that a method's coefficients can be learned: its gradient on small tensors.

    That of a random linear function of a merge is compared with central differences in float64.

    Args:
        method: The method.
        option: The option that asks for it, for the message.
        count: How many experts there are, as some methods take two alone.

    Raises:
        UserError: If the method has no coefficients, or no such gradient.
    """
    name = type(method).__name__
    if not method.uses_coefficients:
        raise UserError(f"{option}: {name} has no coefficients to learn; try TaskArithmetic")
    if method.statistic not in {None, "fisher"}:
        raise UserError(
            f"{option}: {name} weighs by a statistic of the experts, through which no coefficients "
            "are learned; try TaskArithmetic"
        )
    generator = torch.Generator().manual_seed(0)

    def draw() -> Params:
        return {"layer.0.weight": torch.randn(6, 5, generator=generator, dtype=torch.float64)}

    base, experts, gradient, h = draw(), [draw() for _ in range(count)], draw(), 1e-5
    at = [0.5 - 0.25 * m / count for m in range(count)]
    squares = [{key: one.square() for key, one in draw().items()} for _ in experts]
    given = squares if method.statistic else None
    scales = [method.statistic_scale(one) for one in given or ()]

    def value(m: int, shift: float) -> float:
        moved = [one + shift * (i == m) for i, one in enumerate(at)]
        merged = method.merge(base, experts, moved, given)
        return float(sum((merged[key] * one).sum() for key, one in gradient.items()))

    try:
        found = method.pull_back(MergeInputs(base, experts, at, given or (), scales), gradient)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        reason = shortened(error, 100)
        raise UserError(
            f"{option}: the coefficients of {name} cannot be learned ({reason}); try TaskArithmetic"
        ) from error
    expected = [(value(m, h) - value(m, -h)) / (2 * h) for m in range(len(experts))]
    if not torch.allclose(found, torch.tensor(expected, dtype=torch.float64), 1e-5, 1e-6):
        raise UserError(
            f"{option}: the coefficients of {name} cannot be learned: its gradient is "
            f"{found.tolist()}, but differences say {expected}; try TaskArithmetic"
        )
