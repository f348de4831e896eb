"""Independent truths: nothing here imports fmerge."""

import torch


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


def choice_log_likelihoods(model, tokenizer, example):
    """ℓ (c,) of one prompt by a T5: each choice alone, unpadded, mean over its tokens."""
    prompt = tokenizer(example["text"], return_tensors="pt").input_ids
    values = []
    for choice in example["choices"]:
        answer = tokenizer(text_target=choice)["input_ids"]
        starts = [model.config.decoder_start_token_id, *answer[:-1]]
        logits = model(input_ids=prompt, decoder_input_ids=torch.tensor([starts])).logits[0]
        terms = [logits[t].log_softmax(0)[token] for t, token in enumerate(answer)]
        values.append(sum(terms) / len(answer))
    return torch.stack(values)


def df_merge_step(model, tokenizer, base, experts, coefficients, fisher_examples, scored_examples):
    """Lee et al. (NAACL 2025), section 3, one trial: batch 1, no shared code.

    Each Fisher at θ₀ + λₘτₘ: 1/N Σₙ Σ꜀ p(c|xₙ) (∂ℓ[n,c]/∂θ)², plus 1e-12;
    θ = θ₀ + M Σₘ Fₘλₘτₘ / Σₘ Fₘ; the objective is the mean over tasks of the accuracies at θ.
    """
    parameters = dict(model.named_parameters())

    def put(weights):
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)

    top = {name: torch.zeros_like(value) for name, value in base.items()}
    bottom = {name: torch.zeros_like(value) for name, value in base.items()}
    for task, weight in coefficients.items():
        step = {name: weight * (experts[task][name] - base[name]) for name in base}
        put({name: base[name] + step[name] for name in base})
        total = {name: torch.zeros_like(value) for name, value in base.items()}
        for example in fisher_examples[task]:
            p = choice_log_likelihoods(model, tokenizer, example).detach().softmax(0)
            for c in range(len(p)):
                model.zero_grad()
                choice_log_likelihoods(model, tokenizer, example)[c].backward()
                for name in total:
                    if parameters[name].grad is not None:
                        total[name] += p[c] * parameters[name].grad ** 2
        for name in base:
            fisher = total[name] / len(fisher_examples[task]) + 1e-12
            top[name] += fisher * step[name]
            bottom[name] += fisher
    merged = {name: base[name] + len(experts) * top[name] / bottom[name] for name in base}
    put(merged)
    accuracies = {}
    for task, examples in scored_examples.items():
        right = [
            int(choice_log_likelihoods(model, tokenizer, example).argmax()) == example["label"]
            for example in examples
        ]
        accuracies[task] = sum(right) / len(right)
    return merged, accuracies
