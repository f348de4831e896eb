"""The one comparison helper and the one tolerance policy of the tests."""

import torch

TOLERANCE = {torch.float64: (1e-5, 1e-8), torch.float32: (1e-5, 1e-7)}
SAMPLED = 2e-2  # relative, for 20,000 draws


def assert_same(found, expected, rtol=None, atol=None):
    """Compares dictionaries of tensors, and shows the worst entry of the first that differs.

    float64: rtol 1e-5, atol 1e-8; float32: rtol 1e-5, atol 1e-7;
    atol is relative to the largest entry of all tensors: some gradients are zero but for rounding
    (a constant added to every attention score changes nothing), and their squares are noise.
    """
    assert list(sorted(found)) == list(sorted(expected))
    scale = max(
        (
            float(torch.as_tensor(t).detach().abs().max())
            for t in expected.values()
            if torch.as_tensor(t).numel()
        ),
        default=0.0,
    )
    for name in expected:
        want = torch.as_tensor(expected[name])
        got = torch.as_tensor(found[name]).to(want.dtype)
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)} != {tuple(want.shape)}"
        relative, absolute = TOLERANCE.get(torch.as_tensor(found[name]).dtype, (1e-5, 1e-7))
        limit = (atol if atol is not None else absolute * scale) + (
            relative if rtol is None else rtol
        ) * want.abs()
        excess = (got - want).abs() - limit
        if not (excess <= 0).all():
            worst = int(excess.flatten().argmax())
            raise AssertionError(
                f"{name}: {int((excess > 0).sum())} of {want.numel()} entries differ; worst "
                f"{worst}: {got.flatten()[worst]:.9g}, expected {want.flatten()[worst]:.9g}"
            )


def relative_error(found, expected) -> float:
    """‖found − expected‖₁ / ‖expected‖₁ over all tensors."""
    difference = sum(
        float((found[name].double() - expected[name].double()).detach().abs().sum())
        for name in expected
    )
    return difference / sum(
        float(expected[name].detach().double().abs().sum()) for name in expected
    )
