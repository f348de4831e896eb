"""Checks by numbers that the per-example gradients of a kind of batch are right.

Let e[i,j] be the part of ℓⱼ's gradient that the engine attributes to example i. What must hold is
e[i,j] = 0 for i ≠ j, and e[i,i] = gᵢ, the gradient of ℓᵢ. With random factors s, almost surely,

1. row i of every use's gradient scales with sᵢ alone, if and only if e[i,j] = 0 for i ≠ j;
2. Σᵢ sᵢ e[i,i] is autograd's own gradient Σᵢ sᵢ gᵢ, if and only if e[i,i] = gᵢ.

So two backward passes and one of plain autograd check all n² parts at once, whatever the model is.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from fmerge.fisher.engine.gradients import Gradients
from fmerge.fisher.engine.parameter_uses import ParameterUse
from fmerge.fisher.engine.recorder import Recorder
from fmerge.fisher.engine.row_order import RowOrder
from fmerge.fisher.engine.sketch import Sketches


class SelfCheck:
    """Checks one batch.

    Args:
        n: Number of examples.
        row_orders: How rows belong to examples, by key; what is found out is written here.
    """

    def __init__(self, n: int, row_orders: dict[str, RowOrder]) -> None:
        self.n = n
        self.row_orders = row_orders
        # seeded, so that a run finds the same on every repetition and on every process
        self._random = torch.Generator().manual_seed(n)
        self._factors = self._uniform(n)
        self._seed = torch.empty(0)
        self._sketches = Sketches(self._random)
        self._expected: dict[nn.Parameter, Tensor] = {}
        self._norms: dict[nn.Parameter, float] = {}
        self._directions: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        # the coarsest precision met; models use float32 inside, whatever dtype they are in
        self._coarsest = torch.finfo(torch.float32).eps

    def differentiate(self, log_likelihoods: Tensor, parameters: list[nn.Parameter]) -> None:
        """Takes autograd's own gradient of Σₙ sₙ Σ꜀ r[n,c] ℓ[n,c], r random.

        Args:
            log_likelihoods: ℓ (n, c), from a forward pass that is not recorded.
            parameters: The parameters to differentiate.
        """
        values = log_likelihoods.detach()
        random = self._uniform(*values.shape).to(values)
        self._seed = random * torch.isfinite(values)  # a missing candidate has no gradient
        self._factors = self._factors.to(values.device)
        self._expected.clear()
        self._norms = dict.fromkeys(parameters, 0.0)
        if not parameters or not log_likelihoods.requires_grad:
            return

        def sketch(parameter: nn.Parameter, g: Tensor) -> Tensor:
            """Stores a sketch; what autograd then stores is a single zero."""
            dense = g.to_dense()
            self._expected[parameter] = self._sketches.like(parameter).of(dense)
            self._norms[parameter] = float(dense.norm())
            return dense.new_zeros(()).expand_as(dense)

        with ExitStack() as stack:
            # in a hook each gradient is freed at once: all of them would be as large as the model
            for parameter in parameters:
                handle = parameter.register_hook(partial(sketch, parameter))  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
            # autocast would round the sketches to half precision
            stack.enter_context(torch.autocast(values.device.type, enabled=False))
            torch.autograd.grad(log_likelihoods, parameters, self._scaled_seed(), allow_unused=True)

    def compare_values(self, plain: Tensor, recorded: Tensor) -> None:
        """Compares ℓ without and with recording.

        Args:
            plain: ℓ (n, c).
            recorded: ℓ (n, c).

        Raises:
            ValueError: If they differ.
        """
        eps = max(torch.finfo(plain.dtype).eps, torch.finfo(torch.float32).eps)
        tolerance = eps**0.5
        if plain.shape != recorded.shape or not torch.allclose(
            plain, recorded.detach(), rtol=tolerance, atol=tolerance
        ):
            raise ValueError("log_probs gives other values for the same batch a second time")

    def compare_gradients(
        self, recorder: Recorder, log_likelihoods: Tensor, leaves: list[Tensor]
    ) -> tuple[bool, list[nn.Parameter]]:
        """Finds out which rows belong to which example, and compares sums with autograd's own.

        Args:
            recorder: The recorded uses.
            log_likelihoods: ℓ (n, c), from the recorded forward pass.
            leaves: All leaves of its graph, which is used up.

        Returns:
            Whether a row order was assumed wrongly, so that the uses must be recorded again, and
            the parameters for which the sum of all examples' gradients differs.
        """
        once: dict[str, Tensor] = {}
        scaled: dict[str, Tensor] = {}
        totals: dict[nn.Parameter, Tensor] = {}

        def add(parameter: nn.Parameter, uses: list[Gradients]) -> None:
            sketch = self._sketches.like(parameter)
            totals[parameter] = sum((use.total(sketch) for use in uses), sketch.zero())

        observe = partial(self._project, once)
        recorder.backward(log_likelihoods, leaves, self._seed, retain_graph=True, observe=observe)
        recorder.backward(
            log_likelihoods,
            leaves,
            self._scaled_seed(),
            retain_graph=False,
            finish=add,
            observe=partial(self._project, scaled),
        )
        return self._update_row_orders(recorder, once, scaled), self._differing(totals)

    def _project(self, into: dict[str, Tensor], key: str, g: Tensor) -> None:
        """Stores one number per row: its product with a random direction (r, …) to (r,)."""
        wide = torch.promote_types(g.dtype, torch.float32)
        flat = g.reshape(len(g), -1).to(wide)
        form = (flat.shape[1], wide, flat.device)
        if form not in self._directions:
            direction = torch.randn(flat.shape[1], generator=self._random, dtype=wide)
            self._directions[form] = direction.to(flat.device)
        into[key] = flat @ self._directions[form]
        self._coarsest = max(self._coarsest, torch.finfo(g.dtype).eps)

    def _update_row_orders(
        self, recorder: Recorder, once: dict[str, Tensor], scaled: dict[str, Tensor]
    ) -> bool:
        """Writes down how rows belong to examples; returns whether that is new."""
        # a gradient below one unit in the last place of the largest is rounding: that of
        # a saturated attention, for example
        noise = self._coarsest * max((float(g.abs().max()) for g in once.values()), default=0.0)
        changed = False
        uses: list[ParameterUse] = [*recorder.layer_uses, *recorder.tensor_uses]
        for use in uses:
            if use.key in once:
                order = self._row_order(use, once[use.key], scaled[use.key], noise)
                # a use found to be "none" is not recorded again, so it stays so; where both orders
                # fit (one row per example) the use counts as example-major
                if order != use.row_order:
                    self.row_orders[use.key] = order
                    changed = True
        return changed

    def _differing(self, totals: dict[nn.Parameter, Tensor]) -> list[nn.Parameter]:
        """Gives the parameters whose sum of all examples' gradients is not autograd's own."""
        # to the square root of the precision, as is usual for numerical gradients: a wrong form
        # differs by the order of the gradient itself
        tolerance = self._coarsest**0.5
        # a gradient that cancels, such as that of an attention key's bias, is rounding alone
        floor = min(100 * self._coarsest, tolerance) * max(self._norms.values(), default=0.0)
        failed = []
        for parameter, norm in self._norms.items():
            zero = self._sketches.like(parameter).zero()
            difference = totals.get(parameter, zero) - self._expected.get(parameter, zero)
            # "not <=" so that a NaN is a failure too
            if not float(difference.norm()) <= tolerance * norm + floor:
                failed.append(parameter)
        return failed

    def _row_order(self, use: ParameterUse, once: Tensor, scaled: Tensor, noise: float) -> RowOrder:
        """Tells from the factors that rows were scaled by which example each belongs to."""
        # sizes cannot tell: n positions are as many rows as a batch of n examples
        limit = self._coarsest**0.5 * float(once.abs().max()) + noise
        factors = self._factors.to(once)
        candidates: tuple[RowOrder, ...] = ("example-major", "interleaved")
        for order in candidates:
            expected = factors[use.owners(len(once), self.n, order).to(factors.device)]
            if float((scaled - expected * once).abs().max()) <= limit:
                return order
        return "none"

    def _scaled_seed(self) -> Tensor:
        return self._seed * self._factors[:, None].to(self._seed)

    def _uniform(self, *shape: int) -> Tensor:
        # away from zero, so that no example's gradient is scaled out of sight
        return torch.rand(shape, generator=self._random, dtype=torch.float64) + 0.5
