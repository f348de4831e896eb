"""Sketches: linear, true to the norm, and the same for every way to give a gradient."""

import torch

from fmerge.fisher.engine.sketch import SIDE, Sketches
from tests.compare import assert_same


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sketches(seed=0):
    return Sketches(torch.Generator().manual_seed(seed))


def test_a_sketch_is_the_product_with_both_sides():
    sketch = sketches().like(normal(20, 3, 10))
    assert sketch.left.shape == (SIDE, 20) and sketch.right.shape == (SIDE, 30)
    gradient = normal(20, 3, 10, seed=1)
    expected = sketch.left @ gradient.flatten(1) @ sketch.right.T
    assert_same({"": sketch.of(gradient)}, {"": expected})
    assert torch.equal(sketch.zero(), torch.zeros(SIDE, SIDE, dtype=torch.float64))


def test_products_and_rows_have_the_sketch_of_the_gradient_that_they_are():
    sketch = sketches().like(normal(20, 30))
    left, right = normal(6, 20, seed=1), normal(6, 30, seed=2)
    assert_same({"": sketch.of_product(left, right)}, {"": sketch.of(left.T @ right)})
    ids = torch.tensor([3, 0, 3, 19, 3, 7])
    table = torch.zeros(20, 30, dtype=torch.float64).index_add_(0, ids, right)
    assert_same({"": sketch.of_rows(ids, right)}, {"": sketch.of(table)})


def test_small_sides_are_kept_as_they_are():
    gradient = normal(5, 8)
    assert torch.equal(sketches().like(gradient).of(gradient), gradient)
    scalar = normal(())
    assert sketches().like(scalar).of(scalar).tolist() == [[float(scalar)]]


def test_the_squared_norm_is_that_of_the_gradient_on_average():
    gradient = normal(40, 50)
    found = [sketches(seed).like(gradient).of(gradient).square().sum() for seed in range(400)]
    assert_same({"": torch.stack(found).mean()}, {"": gradient.square().sum()}, rtol=0.05)


def test_parameters_of_one_shape_share_a_sketch_in_single_precision_at_least():
    drawn = sketches()
    first, again = drawn.like(normal(20, 30)), drawn.like(normal(20, 30, seed=1))
    assert first.left is again.left and first.right is again.right
    assert drawn.like(normal(20, 30).bfloat16()).left.dtype == torch.float32
