"""Methods that merge one tensor after the other, each as a whole."""

from abc import abstractmethod

import torch
from torch import Tensor

from fmerge.methods.base import MergeMethod, TensorFormula
from fmerge.methods.gradients import by_autograd
from fmerge.methods.inputs import MergeInputs
from fmerge.params import Params


class Tensorwise(MergeMethod):
    """A method that merges one tensor after the other, each as a whole.

    What it needs to know of all tensors together, it finds before the first.
    """

    streams = True

    @abstractmethod
    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares the computation of single tensors.

        Args:
            inputs: The inputs, checked.

        Returns:
            The formula of one tensor; it must not depend on the order of its calls.
        """

    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Merges tensor by tensor and rounds once.

        Args:
            inputs: The inputs, checked.
            out: Not written to.

        Returns:
            New tensors of the experts' layout and dtype.
        """
        formula = self.tensor_formula(inputs)
        return {name: formula(name).to(tensor) for name, tensor in inputs.experts[0].items()}

    def by_tensor(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares a merge a tensor at a time, in parts where no entry looks at another.

        Args:
            inputs: See the base class.

        Returns:
            The formula.
        """
        if not (self.entrywise and inputs.entrywise):
            formula = self.tensor_formula(inputs)
            return lambda name: formula(name).to(inputs.experts[0][name])

        def merged(name: str) -> Tensor:
            first = inputs.experts[0][name]
            result = torch.empty_like(first, memory_format=torch.contiguous_format)
            start = 0
            for one in inputs.parts(name):
                part = self.tensor_formula(one)(name)
                result.view(-1)[start : start + len(part)] = part
                start += len(part)
            return result

        return merged

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ (m,) by autograd through the formula; see the base class."""
        return by_autograd(self.tensor_formula, inputs, gradient)
