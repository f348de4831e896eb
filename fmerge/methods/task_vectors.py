"""Methods that add task vectors τₘ = θₘ − θ₀ to a base."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fmerge.errors import check_within
from fmerge.methods.base import TensorFormula
from fmerge.methods.elementwise import Chunk, Elementwise, Formula
from fmerge.methods.gradients import add_scaled, inner_products
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.tensorwise import Tensorwise
from fmerge.params import Params


class ScaledChange(Tensorwise):
    """Adds one change, made of all task vectors, to the base: θ = θ₀ + s · Δ.

    Args:
        scale: Factor s on Δ.
    """

    needs_base = True

    def __init__(self, scale: float = 1.0) -> None:
        check_within("scale", scale, "(0, inf)")
        self.scale = scale

    @abstractmethod
    def change_of(self, inputs: MergeInputs, name: str) -> Tensor:
        """Computes Δ of one tensor.

        Args:
            inputs: The inputs, checked.
            name: The tensor.

        Returns:
            Δ, of that tensor's shape.
        """

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares θ = θ₀ + s · Δ.

        Args:
            inputs: θ₀, θₘ, λₘ, and statistics where the method uses them.

        Returns:
            The formula.
        """
        return lambda name: inputs.origin[name] + self.scale * self.change_of(inputs, name)


class TaskVectorMethod(ScaledChange):
    """Adds one vector to the base that depends on task vectors alone: Δ(τ₁, …, τ_M; λ).

    Args:
        scale: Factor s on Δ.
    """

    @abstractmethod
    def change(self, vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        """Computes Δ of one tensor.

        Args:
            vectors: That tensor of each τₘ, in the precision of ``wide``; only read.
            coefficients: λₘ.

        Returns:
            Δ, of that tensor's shape.
        """

    def change_of(self, inputs: MergeInputs, name: str) -> Tensor:
        """Computes Δ of one tensor; see the base class.

        Args:
            inputs: θ₀, θₘ and λₘ.
            name: The tensor.

        Returns:
            Δ, of that tensor's shape.
        """
        return self.change(inputs.task_vectors(name), inputs.coefficients)


class WeightedSum(TaskVectorMethod):
    """Task arithmetic with a factor: θ = θ₀ + s · Σₘ λₘτₘ."""

    entrywise = True

    def change(self, vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        """Computes Δ = Σₘ λₘτₘ; see the base class.

        Args:
            vectors: τₘ.
            coefficients: λₘ.

        Returns:
            Δ.
        """
        return _sum(vectors, coefficients)


class SignElection(TaskVectorMethod):
    """Mean of the task vectors that agree with an elected sign, elementwise.

    Yadav et al. 2023, algorithm 1, steps 2 and 3: γ = sign(Σₘ λₘτₘ) and
    θ = θ₀ + s · Σₘ∈A λₘτₘ / Σₘ∈A λₘ, where A are the experts whose τₘ has the sign γ. Entries
    where A is empty keep θ₀.
    """

    scale_invariant = True  # a mean with weights λₘ
    entrywise = True

    def change(self, vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        """Computes Δ = Σₘ∈A λₘτₘ / Σₘ∈A λₘ; see the base class.

        Args:
            vectors: τₘ.
            coefficients: λₘ.

        Returns:
            Δ; 0 where the votes cancel.
        """
        # votes that cancel must sum to zero, which they do if equal coefficients are all 1
        largest = max(coefficients, default=0.0) or 1.0
        elected = _sum(vectors, [coefficient / largest for coefficient in coefficients]).sign()
        total, weight = torch.zeros_like(elected), torch.zeros_like(elected)
        for vector, coefficient in zip(vectors, coefficients, strict=True):
            # where the sum is 0 only zeros agree, so that the mean is 0 there
            agrees = (vector.sign() == elected).to(elected)
            add_scaled(total, vector, coefficient, agrees)
            add_scaled(weight, agrees, coefficient)
        return torch.where(weight > 0, total / weight, torch.zeros_like(total))


class TaskArithmetic(Elementwise):
    """Sum of scaled task vectors: θ = θ₀ + Σₘ λₘτₘ (Ilharco et al. 2023, section 2)."""

    needs_base = True
    holds_average = True
    usual_coefficient = 0.3  # Ilharco et al. 2023, for several tasks

    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares θ = θ₀ + Σₘ λₘ(θₘ − θ₀).

        Args:
            coefficients: λₘ.
            scales: Empty; this formula needs no Fishers.

        Returns:
            The formula.
        """

        def entries(chunk: Chunk) -> None:
            merged, base, experts, _, (vector, *_) = chunk
            merged.copy_(base)
            for expert, coefficient in zip(experts, coefficients, strict=True):
                merged.add_(torch.sub(expert, base, out=vector), alpha=coefficient)

        return entries

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ = ⟨∂L/∂θ, τₘ⟩; see the base class.

        Args:
            inputs: The inputs of the merge, checked.
            gradient: ∂L/∂θ by tensor.

        Returns:
            One number for each expert (m,), in float64.
        """
        return inner_products(inputs, gradient)


class DFMerge(Elementwise):
    """Dynamic Fisher-weighted merging: θ = θ₀ + M · Σₘ wₘλₘτₘ / Σₘ wₘ, elementwise.

    In Lee et al., NAACL 2025, section 3, wₘ = Fₘ, the diagonal Fisher of task m at θ₀ + λₘτₘ,
    which moves with λ. With equal weights it is task arithmetic. The tempered family around it is
    ours: wₘ = (Fₘ/F̄ₘ + δ + ε)^α with ``normalize``, else wₘ = (Fₘ + δF̄ₘ + ε)^α, where F̄ₘ is the
    mean of Fₘ over all entries of all tensors. The defaults are the paper's form.

    Args:
        epsilon: ε, added to every entry, as in the reference, so that the merge is task arithmetic
            where no expert has information. With ``normalize`` it is in units of each task's mean
            Fisher: equal for all tasks, whatever the scales of their Fishers. At 0 such entries
            keep θ₀.
        alpha: The power α ≥ 0: 1 uses the Fishers as they are, 0 is task arithmetic.
        damping: δ ≥ 0, in units of each task's mean Fisher: prevents the ratio of two small
            numbers from deciding entries with little information.
        normalize: Divide each Fisher by its mean, so that tasks whose Fishers differ in scale
            weigh the same.
    """

    statistic = "moving fisher"
    needs_base = True

    def __init__(
        self,
        epsilon: float = 1e-12,
        alpha: float = 1.0,
        damping: float = 0.0,
        normalize: bool = False,
    ) -> None:
        check_within("epsilon", epsilon, "[0, inf)")
        check_within("alpha", alpha, "[0, inf)")
        check_within("damping", damping, "[0, inf)")
        self.epsilon = epsilon
        self.alpha = alpha
        self.damping = damping
        self.normalize = normalize

    def statistic_scale(self, statistic: Mapping[str, Tensor]) -> float:
        """Computes F̄ over all entries of all tensors, where it is needed.

        Args:
            statistic: Fₘ.

        Returns:
            The mean, or 1.
        """
        if self.alpha == 0 or not (self.normalize or self.damping):
            return 1.0
        total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in statistic.values())
        return total / sum(tensor.numel() for tensor in statistic.values())

    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares θ = θ₀ + M · Σₘ wₘλₘ(θₘ − θ₀) / Σₘ wₘ.

        Args:
            coefficients: λₘ.
            scales: F̄ₘ, or 1.

        Returns:
            The formula.
        """
        if self.alpha == 0:  # all weights are one; M · (1/M) would round differently
            return TaskArithmetic().formula(coefficients, scales)
        least = [float(self._weigh(torch.zeros(1), mean, out=torch.zeros(1))) for mean in scales]
        positive = sum(least) > 0  # then so is every total, whatever the Fishers are

        def entries(chunk: Chunk) -> None:
            merged, base, experts, fishers, (total, weight, vector) = chunk
            rows = zip(experts, coefficients, fishers, scales, strict=True)
            for m, (expert, coefficient, fisher, mean) in enumerate(rows):
                share = self._weigh(fisher, mean, out=weight if m else total)
                torch.sub(expert, base, out=vector)
                sum_before = merged if m else merged.new_zeros(())
                torch.addcmul(sum_before, share, vector, value=coefficient, out=merged)
                if m:
                    total.add_(share)
            if positive or total.min() > 0:  # the usual case, much faster than a mask
                torch.addcdiv(base, merged, total, value=len(experts), out=merged)
                return
            shift = torch.where(total > 0, merged / total, 0.0)
            torch.add(base, shift, alpha=len(experts), out=merged)

        return entries

    def _weigh(self, fisher: Tensor, mean: float, out: Tensor) -> Tensor:
        if self.normalize:
            # after the division: divided too, ε would weigh entries that no task knows by 1/F̄ₘ
            torch.div(fisher, mean or 1.0, out=out).add_(self.damping + self.epsilon)
        else:
            torch.add(fisher, self.epsilon, out=out)
            if self.damping:
                out.add_(self.damping * mean)
        if self.alpha != 1:
            out.pow_(self.alpha)
        return out


def _sum(vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Σₘ λₘτₘ."""
    total = torch.zeros_like(vectors[0])
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        add_scaled(total, vector, coefficient)
    return total
