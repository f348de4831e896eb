"""LiNeS: task vectors scaled by the depth of their layer, before any other method."""

from collections.abc import Mapping

from torch import Tensor

from fmerge.errors import UserError, check_within
from fmerge.methods.base import MergeMethod
from fmerge.methods.composition import Transform, Transformed
from fmerge.methods.inputs import MergeInputs, VectorMap
from fmerge.methods.task_vectors import TaskArithmetic


class ScaleByDepth(Transform):
    """Scales task vectors linearly in depth: τ̂ₘ = (a + b · l/(L − 1)) τₘ.

    l is the layer's index from 0 and L the number of layers of its encoder or decoder. Tensors
    outside of the layers, and the layer of a stack of one, are scaled by a.

    Args:
        a: Factor of the first layer.
        b: What the factor of the last layer has in addition.
    """

    entrywise = True

    def __init__(self, a: float, b: float) -> None:
        check_within("a", a, "[0, inf)")
        check_within("b", b, "[0, inf)")
        self.a = a
        self.b = b

    def prepare(self, inputs: MergeInputs) -> VectorMap:
        """Prepares the factors; see the base class.

        Args:
            inputs: The models; their places tell depth.

        Returns:
            The map that scales a tensor by its depth.
        """

        def scaled(m: int, name: str, vector: Tensor) -> Tensor:
            place = inputs.places[name]
            share = (place.depth or 0) / max(1, place.layers - 1)
            return (self.a + self.b * share) * vector

        return scaled


class LiNeS(Transformed):
    """Layer-increasing network scaling of any method (LiNeS: Wang et al., ICLR 2025).

    The task vectors go through ``ScaleByDepth``, τ̂ₘ = (a + b · l/(L − 1)) τₘ, and a method merges
    them: first layers, which tasks share, move less than last ones. The paper's α is a, its β
    is b. With b = 0 and a = 1 it is the method alone. A search tries a and b from 0 to 1 along with
    the coefficients, under the names ``LiNeS.a`` and ``LiNeS.b``.

    Args:
        method: The method; ``TaskArithmetic`` when left out.
        a: Factor of the first layer, and of what is outside of the layers.
        b: What the factor of the last layer has in addition.

    Raises:
        UserError: If the method is itself scaled by depth.
    """

    def __init__(self, method: MergeMethod | None = None, a: float = 0.5, b: float = 0.5) -> None:
        super().__init__(ScaleByDepth(a, b), TaskArithmetic() if method is None else method)
        if self.method.numbers:
            raise UserError("LiNeS: method is scaled by LiNeS itself; one scaling is enough")
        self.a = a
        self.b = b

    @property
    def numbers(self) -> Mapping[str, tuple[float, float, float]]:
        """What a search may try beside λ: a and b, in [0, 1] or up to what they are."""
        own = {"LiNeS.a": self.a, "LiNeS.b": self.b}
        return {name: (value, 0.0, max(1.0, value)) for name, value in own.items()}

    def with_numbers(self, values: Mapping[str, float]) -> MergeMethod:
        """Makes a scaling with other numbers.

        Args:
            values: a and b by the names of ``numbers``.

        Returns:
            The same method, scaled by them.
        """
        a, b = values.get("LiNeS.a", self.a), values.get("LiNeS.b", self.b)
        return LiNeS(self.method, a, b)
