"""Merges that are calibrated layer by layer on unlabelled examples of the experts' tasks."""

from collections.abc import Sequence
from typing import final

import torch

from fmerge.errors import UserError, check_within
from fmerge.methods.averages import Average
from fmerge.methods.base import MergeMethod
from fmerge.methods.composition import Wrapper, check_kind
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.layer_fits import Moments
from fmerge.params import Params


class Calibrated(Wrapper):
    """A start, whose layers are then fitted to the experts' one after the other.

    As a formula it is its start. The fits need what enters the layers of the merged network, whose
    earlier layers are fitted already: the run makes them, with ``fmerge.methods.layer_fits``.

    Args:
        start: The method that merges the start, whose coefficients are searched.
        a: Share of the expert's own input in x̃ = a xₜ + (1 − a) x, x being the merged model's.
        rho: ρ of the anchor A = ρW + (1 − ρ)W₀, W being the start's weight and W₀ the base's.
        r: Strength of the pull towards the anchor.
        double: Whether moments are summed in float64.

    Attributes:
        off_diagonal: Factor on the off-diagonal entries of a layer's moments.
        biases: Whether biases of linear layers are fitted.
        norms: Whether gains and shifts of normalisations are fitted.

    Raises:
        UserError: If a number is out of its range, or the start is no method or calibrated itself.
    """

    calibrates = True
    uses_coefficients = False  # those of a start that has some
    off_diagonal: float = 1.0
    biases: bool = False
    norms: bool = False

    def __init__(
        self, start: MergeMethod | None, a: float, rho: float, r: float, double: bool
    ) -> None:
        start = Average() if start is None else start
        check_kind(self, "start", start, MergeMethod)
        if start.calibrates:
            raise UserError(
                f"{type(self).__name__}: start is {type(start).__name__}, which is calibrated "
                "itself; give the method that it starts from"
            )
        check_within("a", a, "[0, 1]")
        check_within("rho", rho, "[0, inf)")
        check_within("r", r, "[0, inf)")
        self.start = start
        self.a, self.rho, self.r = a, rho, r
        self.double = double
        self.take_over()
        self.needs_base = start.needs_base or (r > 0 and rho != 1)

    @property
    def inner(self) -> MergeMethod:
        """The method that merges the start."""
        return self.start

    def scale(self, moments: Moments) -> float:
        """Weighs an expert's moments against those of the others.

        Args:
            moments: Sums over the expert's examples.

        Returns:
            The factor on them; 1 unless a method says otherwise.
        """
        return 1.0

    def merge_buffers(
        self, base: Params | None, experts: Sequence[Params], coefficients: Sequence[float]
    ) -> Params:
        """Merges buffers as the start does.

        Args:
            base: b₀, of the experts' layout, if there is a base.
            experts: bₘ.
            coefficients: λₘ.

        Returns:
            New tensors.
        """
        return self.start.merge_buffers(base, experts, coefficients)

    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Merges the start.

        Args:
            inputs: The inputs, checked.
            out: See ``MergeMethod.merge``.

        Returns:
            See ``MergeMethod.merge``.
        """
        return self.start.compute(inputs, out)


@final
class RegMeanPP(Calibrated):
    r"""RegMean on the merged model's own inputs (Nguyen et al. 2025, RegMean++, section 3).

    .. math::
        W = \Big(\sum_m W_m \tilde G_m\Big) \Big(\sum_m \tilde G_m\Big)^{-1}

    for each weight W (o, i) of a linear layer in forward order, where G̃ₘ is Gₘ = Σ x xᵀ (i, i) with
    its off-diagonal entries shrunk, and x is what the layer reads on task m in the merged network,
    in which W is the start's and all layers before it are fitted already. The authors' code takes
    the inputs of a block's layers before any of them is fitted. All else stays the start's.

    Args:
        start: The method that merges the start, whose coefficients are searched; Average when left
            out, as in the paper.
        off_diagonal: Factor on the off-diagonal entries of every Gₘ, as RegMean's.
        double: Sum the Gₘ in float64, not float32. The fit is computed in float64 either way.
    """

    def __init__(
        self, start: MergeMethod | None = None, off_diagonal: float = 0.9, double: bool = False
    ) -> None:
        super().__init__(start, a=0.0, rho=1.0, r=0.0, double=double)
        check_within("off_diagonal", off_diagonal, "[0, 1]")
        self.off_diagonal = off_diagonal


@final
class FeatCal(Calibrated):
    r"""Feature calibration (arXiv 2605.13030).

    .. math::
        W = \Big[\Big(\sum_m C_m/c_m + rI\Big)^{-1}
            \Big(\sum_m D_m W_m^\top/c_m + rA^\top\Big)\Big]^\top

    for each weight W (o, i) of a linear layer in forward order, with Cₘ = E[x xᵀ], Dₘ = E[x x̃ᵀ],
    cₘ = ‖Cₘ‖_F, x̃ = a xₜ + (1 − a) x and A = ρ W_start + (1 − ρ) W₀. x is what the layer reads on
    task m in the merged network, whose earlier layers are fitted already, and xₜ in expert m's.
    Biases are b = meanₘ E[Wₘx̃ + bₘ − Wx]. Gain and shift of a normalisation minimise
    Σₘ E[(γz + β − γₘz − βₘ)²] + r(γ − A_γ)² + r(β − A_β)², z being the normalised x. Embeddings
    stay the start's.

    Args:
        start: The method that merges the start, whose coefficients are searched; Average when left
            out.
        a: Share of the expert's own input in x̃.
        rho: ρ of the anchor A. Above 1 it lies beyond the start, seen from the base.
        r: Strength of the pull towards the anchor; 0 does without the base.
        biases: Whether biases are fitted.
        norms: Whether gains and shifts of normalisations are fitted.
        double: Sum Cₘ and Dₘ in float64, not float32. The fit is computed in float64 either way.
    """

    needs_base = True  # for the anchor

    def __init__(
        self,
        start: MergeMethod | None = None,
        a: float = 0.3,
        rho: float = 2.0,
        r: float = 0.05,
        biases: bool = True,
        norms: bool = True,
        double: bool = False,
    ) -> None:
        super().__init__(start, a=a, rho=rho, r=r, double=double)
        self.biases, self.norms = biases, norms

    def scale(self, moments: Moments) -> float:
        """Computes 1 / (n cₘ), which makes means of the sums over n positions and divides by cₘ.

        Args:
            moments: Sums over the expert's examples.

        Returns:
            The factor on them; 0 where the inputs are all zero, which say nothing.
        """
        size = float(torch.linalg.matrix_norm(moments.second))
        return 1 / size if size > 0 else 0.0
