"""Experts in folders, merged in memory and tensor by tensor."""

from types import SimpleNamespace

import torch

from fmerge.merging.assembler import Assembler
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble
from fmerge.merging.outputs import outputs_of
from fmerge.merging.saved_forms import saved_forms
from fmerge.merging.streaming import Streaming
from tests import tiny


def save_experts(folder, config, count=2, dtype=torch.bfloat16, size="1KB", seed=10):
    """A base and experts near it, in shards; returns the base's folder and the experts'."""
    base = tiny.language_model(config, 1)
    origin = dict(base.named_parameters())
    paths = {}
    for m in range(count):
        model = tiny.language_model(config, seed + m)
        with torch.no_grad():
            for name, own in model.named_parameters():
                own.copy_(origin[name] + 0.1 * (own - origin[name]))
        paths["abc"[m]] = save(model.to(dtype), folder / "abc"[m], size)
    return save(base.to(dtype), folder / "base", size), paths


def save(model, folder, size="1KB"):
    model.save_pretrained(folder, max_shard_size=size)
    tiny.text_tokenizer().save_pretrained(folder)
    return str(folder)


def streaming(module, experts, method, base=None, fishers=None, dtype=None):
    """Plans a merge of folders tensor by tensor."""
    given = {name: Expert(path) for name, path in experts.items()}
    for name, file in (fishers or {}).items():
        given[name].fisher = file
    ensemble = load_ensemble(given, base, method, module, values="places")
    forms = saved_forms(ensemble, dtype)
    return Streaming(
        ensemble=ensemble,
        method=method,
        outputs=outputs_of(ensemble, forms),
        fishers=fishers or {},
        dtypes=next(iter(forms.values())).dtypes,
    )


def in_memory(module, experts, method, coefficients, base=None, fishers=None, dtype=None):
    """Merges folders in memory: the body and its fingerprinted ensemble."""
    given = {name: Expert(path) for name, path in experts.items()}
    for name, file in (fishers or {}).items():
        given[name].fisher = file
    ensemble = load_ensemble(given, base, method, module)
    forms = saved_forms(ensemble, dtype)
    assembler = Assembler(
        method,
        ensemble.base,
        ensemble.bodies,
        lambda *_: {},
        ensemble.fishers,
        buffers=ensemble.moving,
        dtypes=next(iter(forms.values())).dtypes,
    )
    body = {name: one.clone() for name, one in assembler.assemble(coefficients).items()}
    return SimpleNamespace(body=body, ensemble=ensemble, facts=assembler.facts(coefficients))


def never():
    return 0
