"""Blocks of a split: disjoint, complete, and each part with every label in its share."""

from collections import Counter

import pytest

from fmerge.data.blocks import LEAST, SHARES, stratified_blocks
from tests.data.test_tasks import data, ids


def labels(*counts):
    return [label for label, count in enumerate(counts) for _ in range(count)]


@pytest.mark.parametrize("counts", [(700, 250, 47, 3), (277,), (60, 60), (16, 1)])
def test_parts_hold_each_label_in_its_share(counts):
    given = labels(*counts)
    blocks = stratified_blocks(given, seed=4)
    assert len(blocks) == len(SHARES)
    assert sorted(i for block in blocks for i in block) == list(range(len(given)))
    assert all(not block or len(block) >= LEAST for block in blocks)
    part = []
    for block in blocks:
        part += block
        found = Counter(given[i] for i in part)
        for label, count in enumerate(counts):
            assert abs(found[label] - count * len(part) / len(given)) <= 1 + 1e-9


def test_sizes_double_where_there_is_enough():
    sizes = [len(block) for block in stratified_blocks([0] * 1600)]
    assert sizes == [100, 100, 200, 400, 400, 400]
    # a sixteenth is too little, and so is what an eighth or a quarter would add to 16
    assert [len(b) for b in stratified_blocks([0] * 90)] == [16, 0, 0, 29, 23, 22]
    assert [len(b) for b in stratified_blocks([0] * 20)] == [20, 0, 0, 0, 0, 0]
    assert [len(b) for b in stratified_blocks([0] * 90, least=40)] == [40, 0, 0, 0, 0, 50]


def test_the_seed_fixes_them_and_chance_is_even():
    given = labels(30, 10)
    assert stratified_blocks(given, 1) == stratified_blocks(given, 1) != stratified_blocks(given, 2)
    first = Counter(i for seed in range(400) for i in stratified_blocks(given, seed)[0])
    # 16 of 40 each time: 160 of 400, with a standard deviation of 9.8
    assert len(first) == 40 and all(abs(count - 160) < 45 for count in first.values())


def test_answers_that_are_no_classes_are_one_label():
    spans, numbers = [(i, i + 1) for i in range(50)], [i / 7 for i in range(50)]
    assert stratified_blocks(spans) == stratified_blocks(numbers) == stratified_blocks([0] * 50)


def test_loaders_of_blocks_are_kept_and_leave_empty_ones_out():
    made = data(batch_size=4)  # 13 examples: all in the first block
    first = made.loaders("validation", ["a", "b"], block=0)
    assert sorted(ids(first["a"])) == list(range(13))
    assert made.loaders("validation", ["a"], block=0)["a"] is first["a"]
    assert made.loaders("validation", block=1) == {}
    assert made.loaders("validation")["a"] is not first["a"]
