"""Distances by layer, against the definition on the whole tensors."""

import pytest
import torch

from fmerge.merging.distances import layer_distances

NAMES = ["m.0.w", "m.0.b", "m.1.w", "head.w"]
LAYERS = {"m.0": NAMES[:2], "m.1": [NAMES[2]], "head": [NAMES[3]]}


def body(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 5, generator=generator) for name in NAMES}


def norm(one, other, layer):
    parts = [(one[n].double() - (other[n].double() if other else 0)).flatten() for n in layer]
    return float(torch.cat(parts).norm())


@pytest.mark.parametrize("based", [True, False])
def test_distances_are_their_definition(based):
    base, bodies = body(0), {"a": body(1), "b": body(2), "c": body(3)}
    found = layer_distances(base if based else None, bodies)
    origin = base if based else bodies["a"]
    assert found.origin == ("base" if based else "a") and list(found.products) == list(LAYERS)
    experts = list(bodies.values())
    for layer, names in LAYERS.items():
        size = norm(origin, None, names)
        for m in range(3):
            away = norm(experts[m], origin, names) / size
            assert found.away(layer, m) == pytest.approx(away, rel=1e-5)
            for n in range(m):
                apart = norm(experts[m], experts[n], names) / size
                assert found.apart(layer, m, n) == pytest.approx(apart, rel=1e-5)


def test_close_experts_without_a_base_are_told_apart():
    """Differences far below the weights, whose products would lose them in float32."""
    one = {"m.0.w": torch.full((1000,), 100.0)}
    other = {"m.0.w": one["m.0.w"] + 2**-12}
    found = layer_distances(None, {"a": one, "b": other})
    assert found.apart("m.0", 0, 1) == pytest.approx(2**-12 / 100, rel=1e-5)


def test_nothing_to_compare():
    assert layer_distances(None, {"a": {}, "b": {}}) is None
