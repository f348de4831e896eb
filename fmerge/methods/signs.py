"""Which methods take negative coefficients."""

from collections.abc import Mapping

from fmerge.errors import UserError
from fmerge.methods.base import MergeMethod


def check_signs(method: MergeMethod, coefficients: Mapping[str, float]) -> None:
    """Checks that no coefficient is negative where the formula needs λₘ ≥ 0.

    Args:
        method: The formula.
        coefficients: λ, or the least λ that a search may try, by name.

    Raises:
        UserError: If one is negative, and the method does not allow it.
    """
    if method.allows_negative:
        return
    for name, value in coefficients.items():
        if value < 0:
            raise UserError(
                f"{type(method).__name__}: divides by the sum of the coefficients, which must "
                f"not be negative, but that of '{name}' is {value:g} or may become it; give "
                "numbers from 0, or a method that adds task vectors, such as TaskArithmetic"
            )
