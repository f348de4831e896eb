"""What a strided sampler shares out comes back in the order of the data set."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import distributed

from fmerge.system.distributed import gather, in_dataset_order, strided_indices

ONE = SimpleNamespace(world_size=1, global_rank=0)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_order_of_the_data_set_is_that_of_lightnings_sampler_undone(processes):
    rows = torch.arange(14.0).view(7, 2)
    samplers = [
        UnrepeatedDistributedSampler(rows, num_replicas=processes, rank=rank, shuffle=False)
        for rank in range(processes)
    ]
    shares = [rows[list(sampler)] for sampler in samplers]
    assert {len(share) for share in shares} == (
        {7} if processes == 1 else {-(-7 // processes), 7 // processes}
    )
    assert torch.equal(in_dataset_order(shares), rows)
    for rank, sampler in enumerate(samplers):
        trainer = SimpleNamespace(world_size=processes, global_rank=rank)
        listed = strided_indices(trainer, 0, 1) + strided_indices(trainer, 1, len(sampler) - 1)
        assert listed == list(sampler)


def test_uneven_shares_by_value():
    shares = [
        torch.tensor([True, False, True]),
        torch.tensor([False, False]),
        torch.tensor([True, True]),
    ]
    assert in_dataset_order(shares).tolist() == [True, False, True, False, False, True, True]


def test_one_process_has_everything_itself(monkeypatch):
    assert gather(ONE, {"a": 1}) == [{"a": 1}]

    def all_gather(found, own):
        found[:] = [own, own + 1]

    monkeypatch.setattr(distributed, "all_gather_object", all_gather)
    assert gather(SimpleNamespace(world_size=2, global_rank=0), 7) == [7, 8]
