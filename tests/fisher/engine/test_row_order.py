"""Rows by example."""

import torch

from fmerge.fisher.engine.row_order import example_major, owners


def test_interleaved_rows_are_put_together_by_example():
    rows = torch.tensor([[0], [10], [20], [1], [11], [21]])  # 10 · example + repetition
    found = example_major(rows, 3, "interleaved")
    assert found.flatten().tolist() == [0, 1, 10, 11, 20, 21]
    assert example_major(rows, 3, "example-major") is rows
    assert example_major(rows[:3], 3, "interleaved").flatten().tolist() == [0, 10, 20]


def test_owners_are_those_that_the_order_gives():
    assert owners(6, 3, "example-major").tolist() == [0, 0, 1, 1, 2, 2]
    assert owners(6, 3, "interleaved").tolist() == [0, 1, 2, 0, 1, 2]
