"""Which blocks become units of FSDP2, and how a split module becomes whole again."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from transformers import T5ForConditionalGeneration

from fmerge.errors import UserError
from fmerge.fisher import FisherSettings
from fmerge.modules import RankChoice, TextGenerator
from fmerge.modules.sharding import blocks_of, check_split_fisher, make_whole, shard
from tests import tiny


def names(module):
    paths = {one: name for name, one in module.named_modules()}
    return [paths[block] for block in blocks_of(module)]


def test_blocks_are_the_members_of_the_outermost_lists():
    t5 = T5ForConditionalGeneration(tiny.t5_config())
    assert names(t5) == [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in (0, 1)]
    nested = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.Tanh()]), nn.Linear(2, 2)])
    assert names(nested) == ["0.0", "1"]


def test_what_is_tied_to_the_rest_stays_in_the_root():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
    model.head = nn.Linear(2, 2)
    model.head.weight = model.layers[1].weight
    model.layers[3].weight = model.layers[2].weight
    assert names(model) == ["layers.0"]
    model.again = model.layers  # as tasks that share a body
    assert names(model) == ["layers.0"]


def test_a_split_module_becomes_whole_again(tmp_path):
    start = {"init_method": f"file://{tmp_path}/x", "rank": 0, "world_size": 1}
    distributed.init_process_group("gloo", **start)
    try:
        module = RankChoice()
        module.model = T5ForConditionalGeneration(tiny.t5_config())
        before = {name: value.clone() for name, value in module.state_dict().items()}
        shard(module, init_device_mesh("cpu", (1,)))
        shard(module, init_device_mesh("cpu", (1,)))  # it is split already
        assert isinstance(module.model.encoder.block[0], FSDPModule)
    finally:
        distributed.destroy_process_group()
    make_whole(module)
    module.load_state_dict(before)
    assert not any(isinstance(one, FSDPModule) for one in module.model.modules())
    assert module.model.lm_head.weight is module.model.shared.weight
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.model.generate(torch.tensor([[1, 2]]), max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize(
    ("settings", "precision", "reason"),
    [
        ({"until": 0.1}, "32-true", "--until and --standard_error compare"),
        ({"estimator": "sampled"}, "32-true", "answers of several lengths"),
        ({"estimator": "empirical"}, "16-mixed", "--trainer.precision is 16-mixed; use bf16-mixed"),
        ({"estimator": "empirical"}, "bf16-mixed", None),
    ],
)
def test_what_a_split_model_does_not_do_is_told(settings, precision, reason):
    given = SimpleNamespace(precision=precision), TextGenerator(), FisherSettings(**settings)
    if reason is None:
        check_split_fisher(*given)
        return
    with pytest.raises(UserError, match=f"fsdp2 splits the model over processes, but {reason}"):
        check_split_fisher(*given)
