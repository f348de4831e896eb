"""Independent truths: nothing here imports fmerge."""


def fisher(model, batches, log_probs, weights_of):
    """The definition, one example at a time in float64: 1/N Σₙ Σ꜀ W[n,c] (∂ℓ[n,c]/∂θ)².

    ``weights_of(ℓ (c,), n) -> W (c,)``; batches hold one example each.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    total = {name: 0.0 for name in names}
    count = 0
    for n, batch in enumerate(batches):
        c = log_probs(batch).shape[1]
        weights = weights_of(log_probs(batch)[0].detach(), n)
        for k in range(c):
            model.zero_grad(set_to_none=True)
            log_probs(batch)[0, k].backward()  # a fresh forward pass for every candidate
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    total[name] = total[name] + weights[k] * parameter.grad.detach() ** 2
        count += 1
    model.zero_grad(set_to_none=True)
    return {name: value / count for name, value in total.items()}, count
