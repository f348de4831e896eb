"""The proof, by numbers, that the per-example gradients of a kind of batch are the right ones.

With e[i,j] the part of ℓⱼ's gradient that the engine attributes to example i, what must hold is
e[i,j] = 0 for i ≠ j and e[i,i] = gᵢ, the gradient of ℓᵢ. For random factors s, almost surely,

1. row i of every use's gradient scales with sᵢ alone, if and only if e[i,j] = 0 for i ≠ j;
2. Σᵢ sᵢ e[i,i] is autograd's own gradient Σᵢ sᵢ gᵢ, if and only if e[i,i] = gᵢ.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from fmerge.fisher.engine.gradients import Term
from fmerge.fisher.engine.parameter_uses import Layout, Source, Use
from fmerge.fisher.engine.recorder import Recorder
from fmerge.fisher.engine.sketch import Sketches


class Check:
    """Checks one batch.

    Args:
        n: Number of examples.
        layouts: How rows belong to examples, by key; what is found out is written here.
    """

    def __init__(self, n: int, layouts: dict[str, Layout]) -> None:
        self.n = n
        self.layouts = layouts
        self._random = torch.Generator().manual_seed(n)
        self._factors = self._uniform(n)
        self._seed = torch.empty(0)
        self._sketches = Sketches(self._random)
        self._truth: dict[nn.Parameter, Tensor] = {}
        self._norms: dict[nn.Parameter, float] = {}
        self._directions: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        # the coarsest precision met; models use float32 inside, whatever dtype they are in
        self._coarsest = torch.finfo(torch.float32).eps

    def differentiate(self, log_likelihoods: Tensor, parameters: list[nn.Parameter]) -> None:
        """Takes autograd's own gradient of Σₙ sₙ Σ꜀ r[n,c] ℓ[n,c], r random.

        Args:
            log_likelihoods: ℓ (n, c), from a forward pass without hooks.
            parameters: Those to differentiate.
        """
        values = log_likelihoods.detach()
        random = self._uniform(*values.shape).to(values)
        self._seed = random * torch.isfinite(values)
        self._factors = self._factors.to(values.device)
        self._truth.clear()
        self._norms = dict.fromkeys(parameters, 0.0)
        if not parameters or not log_likelihoods.requires_grad:
            return

        def keep(parameter: nn.Parameter, g: Tensor) -> Tensor:
            """Keeps a sketch; what autograd then keeps is a single zero."""
            dense = g.to_dense()
            self._truth[parameter] = self._sketches.like(parameter).of(dense)
            self._norms[parameter] = float(dense.norm())
            return dense.new_zeros(()).expand_as(dense)

        with ExitStack() as stack:
            for parameter in parameters:
                handle = parameter.register_hook(partial(keep, parameter))  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
            # autocast would round the sketches to half precision
            stack.enter_context(torch.autocast(values.device.type, enabled=False))
            torch.autograd.grad(log_likelihoods, parameters, self._scaled_seed(), allow_unused=True)

    def compare_values(self, plain: Tensor, hooked: Tensor) -> None:
        """Compares ℓ without and with hooks.

        Args:
            plain: ℓ (n, c).
            hooked: ℓ (n, c).

        Raises:
            ValueError: If they differ.
        """
        eps = max(torch.finfo(plain.dtype).eps, torch.finfo(torch.float32).eps)
        tolerance = eps**0.5
        if plain.shape != hooked.shape or not torch.allclose(
            plain, hooked.detach(), rtol=tolerance, atol=tolerance
        ):
            raise ValueError("log_probs gives other values for the same batch a second time")

    def compare_gradients(
        self, recording: Recorder, log_likelihoods: Tensor, leaves: list[Tensor]
    ) -> tuple[bool, list[nn.Parameter]]:
        """Finds out which rows belong to which example, and compares sums with autograd's own.

        Args:
            recording: The recorded uses.
            log_likelihoods: ℓ (n, c), from the recorded forward pass.
            leaves: All leaves of its graph, which is used up.

        Returns:
            Whether a layout was supposed wrongly, so that the uses must be recorded again, and
            the parameters for which the sum of all examples' gradients differs.
        """
        once: dict[str, Tensor] = {}
        scaled: dict[str, Tensor] = {}
        totals: dict[nn.Parameter, Tensor] = {}

        def add(parameter: nn.Parameter, terms: list[Term]) -> None:
            sketch = self._sketches.like(parameter)
            totals[parameter] = sum((term.total(sketch) for term in terms), sketch.zero())

        recording.backward(
            log_likelihoods, leaves, self._seed, None, True, partial(self._project, once)
        )
        recording.backward(
            log_likelihoods, leaves, self._scaled_seed(), add, False, partial(self._project, scaled)
        )
        return self._learn(recording, once, scaled), self._differing(totals)

    def _project(self, into: dict[str, Tensor], key: str, g: Tensor) -> None:
        wide = torch.promote_types(g.dtype, torch.float32)
        flat = g.reshape(len(g), -1).to(wide)
        form = (flat.shape[1], wide, flat.device)
        if form not in self._directions:
            direction = torch.randn(flat.shape[1], generator=self._random, dtype=wide)
            self._directions[form] = direction.to(flat.device)
        into[key] = flat @ self._directions[form]
        self._coarsest = max(self._coarsest, torch.finfo(g.dtype).eps)

    def _learn(
        self, recording: Recorder, once: dict[str, Tensor], scaled: dict[str, Tensor]
    ) -> bool:
        """Writes down how rows belong to examples; returns whether that is new."""
        # below one unit in the last place of the largest, a gradient is rounding: a saturated
        # attention's, say
        noise = self._coarsest * max((float(g.abs().max()) for g in once.values()), default=0.0)
        changed = False
        sites: list[Use | Source] = [*recording.uses, *recording.sources]
        for site in sites:
            if site.key in once:
                layout = self._layout(once[site.key], scaled[site.key], noise)
                # what was found not to belong once stays so; tiles that look like blocks are
                if layout != site.layout:
                    self.layouts[site.key] = layout
                    changed = True
        return changed

    def _differing(self, totals: dict[nn.Parameter, Tensor]) -> list[nn.Parameter]:
        """Gives the parameters whose sum of all examples' gradients is not autograd's own."""
        tolerance = self._coarsest**0.5
        # a gradient that cancels, such as that of an attention key's bias, is rounding alone
        floor = min(100 * self._coarsest, tolerance) * max(self._norms.values(), default=0.0)
        failed = []
        for parameter, norm in self._norms.items():
            zero = self._sketches.like(parameter).zero()
            difference = totals.get(parameter, zero) - self._truth.get(parameter, zero)
            # "not <=" so that a NaN is a failure too
            if not float(difference.norm()) <= tolerance * norm + floor:
                failed.append(parameter)
        return failed

    def _layout(self, once: Tensor, scaled: Tensor, noise: float) -> Layout:
        limit = self._coarsest**0.5 * float(once.abs().max()) + noise
        factors = self._factors.to(once)
        repeats = len(once) // self.n
        candidates: dict[Layout, Tensor] = {
            "blocks": factors.repeat_interleave(repeats),
            "tiles": factors.repeat(repeats),
        }
        for layout, expected in candidates.items():
            if float((scaled - expected * once).abs().max()) <= limit:
                return layout
        return "none"

    def _scaled_seed(self) -> Tensor:
        return self._seed * self._factors[:, None].to(self._seed)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._random, dtype=torch.float64) + 0.5
