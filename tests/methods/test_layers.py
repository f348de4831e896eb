"""Methods on layers: weights that are stored as (in, out) give the transposed merge."""

import pytest
import torch

from fmerge.methods import WUDI, FisherTSV, IsoCTS
from tests.compare import assert_same


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def turned(model):
    return {name: t.T.contiguous() if t.dim() == 2 else t for name, t in model.items()}


@pytest.mark.parametrize("method", [IsoCTS(share=0.4), WUDI(), FisherTSV(atoms=2)])
def test_conv1d_is_a_linear_layer_turned(method):
    shapes = {"h.0.up.weight": (6, 4), "h.0.up.bias": (6,), "h.0.square.weight": (5, 5)}
    base, *models = (
        {name: gaussian(10 * m + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
        for m in range(5)
    )
    experts, fishers = models[:2], [{k: v**2 for k, v in one.items()} for one in models[2:]]
    expected = turned(method.merge(base, experts, [0.9, 0.4], fishers[:2]))
    found = method.merge(
        turned(base), [turned(e) for e in experts], [0.9, 0.4], [turned(f) for f in fishers[:2]]
    )
    assert_same(found, expected)
    # it matters: a layer's inputs and outputs are not alike
    square = {"square.weight": base["h.0.square.weight"]}
    others = [{"square.weight": one["h.0.square.weight"]} for one in models]
    curved = [{"square.weight": one["square.weight"] ** 2} for one in others[2:]]
    plain = method.merge(square, others[:2], [0.9, 0.4], curved[:2])["square.weight"]
    back = method.merge(
        turned(square), [turned(e) for e in others[:2]], [0.9, 0.4], [turned(f) for f in curved[:2]]
    )["square.weight"].T
    assert torch.allclose(plain, back) == isinstance(method, FisherTSV)
