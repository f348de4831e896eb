"""The proof, by numbers, that the per-example gradients of a kind of batch are the right ones.

With e[i,j] the part of ℓⱼ's gradient that the engine attributes to example i, what must hold is
e[i,j] = 0 for i ≠ j and e[i,i] = gᵢ, the gradient of ℓᵢ. For random factors s, almost surely,

1. row i of every use's gradient scales with sᵢ alone, if and only if e[i,j] = 0 for i ≠ j;
2. Σᵢ sᵢ e[i,i] is autograd's own gradient Σᵢ sᵢ gᵢ, if and only if e[i,i] = gᵢ.
"""

import torch
from torch import Tensor, nn

from fmerge.fisher.recording import Recording
from fmerge.fisher.terms import Term
from fmerge.fisher.uses import Layout, Source, Use


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
        self._truth: dict[nn.Parameter, Tensor | None] = {}
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
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if parameters and log_likelihoods.requires_grad:
            seed = self._seed * self._factors[:, None].to(values)
            gradients = torch.autograd.grad(log_likelihoods, parameters, seed, allow_unused=True)
        self._truth = dict(zip(parameters, gradients, strict=True))

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

    def rows(self, recording: Recording, log_likelihoods: Tensor, leaves: list[Tensor]) -> bool:
        """Finds out which rows of layers' outputs belong to which example.

        Args:
            recording: The recorded uses.
            log_likelihoods: ℓ (n, c), from the recorded forward pass.
            leaves: All leaves of its graph.

        Returns:
            Whether a layout was supposed wrongly, so that the uses must be recorded again.
        """
        once: dict[str, Tensor] = {}
        scaled: dict[str, Tensor] = {}
        directions: dict[str, Tensor] = {}

        def project(into: dict[str, Tensor], key: str, g: Tensor) -> None:
            wide = torch.promote_types(g.dtype, torch.float32)
            flat = g.reshape(len(g), -1).to(wide)
            if key not in directions:
                direction = torch.randn(flat.shape[1], generator=self._random, dtype=wide)
                directions[key] = direction.to(flat.device)
            into[key] = flat @ directions[key]
            self._coarsest = max(self._coarsest, torch.finfo(g.dtype).eps)

        for into, seed in ((once, self._seed), (scaled, self._scaled_seed())):
            recording.backward(
                log_likelihoods,
                leaves,
                seed,
                finish=lambda parameter, terms: None,
                keep=True,
                watch=lambda key, g, into=into: project(into, key, g),  # type: ignore[misc]
            )
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

    def totals(
        self, recording: Recording, log_likelihoods: Tensor, leaves: list[Tensor]
    ) -> list[nn.Parameter]:
        """Compares the sum of all examples' gradients with autograd's own.

        Args:
            recording: The recorded uses.
            log_likelihoods: ℓ (n, c), from the recorded forward pass.
            leaves: All leaves of its graph.

        Returns:
            The parameters for which they differ.
        """
        errors = {p: 0.0 if g is None else float(g.norm()) for p, g in self._truth.items()}
        norms = dict(errors)

        def compare(parameter: nn.Parameter, terms: list[Term]) -> None:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            total = torch.zeros(parameter.shape, dtype=wide, device=parameter.device)
            for term in terms:
                term.add_total(total)
            truth = self._truth[parameter]
            errors[parameter] = float((total if truth is None else total.sub_(truth)).norm())

        recording.backward(log_likelihoods, leaves, self._scaled_seed(), compare, keep=False)
        tolerance = self._coarsest**0.5
        # a gradient that cancels, such as that of an attention key's bias, is rounding alone
        floor = min(100 * self._coarsest, tolerance) * max(norms.values(), default=0.0)
        # "not <=" so that a NaN is a failure too
        return [p for p in errors if not errors[p] <= tolerance * norms[p] + floor]

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
