"""The sweep finds what it is there to find, and its table says it."""

import pytest
import torch
from torch import nn

from tests.architectures import exactness, sweep, table
from tests.architectures.tiny_configs import NotBuilt, build, config_of

EXACT = {
    "read": "works", "Average": "exact", "fisher": "exact", "FisherMerge": "works",
    "RegMean": "works", "fit": "works", "test": "works",
}  # fmt: skip


@pytest.mark.slow  # seven commands each
@pytest.mark.parametrize("name", ["classifier/bert", "seq2seq/bart", "causal/llama"])
def test_architectures_that_run_through_every_command(name, tmp_path):
    assert sweep.sweep_one(*name.split("/"), tmp_path / "log") == EXACT


def test_a_tiny_configuration_keeps_the_architecture():
    config = config_of("causal", "llama")
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (32, 2, 2)
    first, again = (build("causal", "llama", 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_cannot_be_built_says_why():
    with pytest.raises(NotBuilt, match="^ImportError: .*detectron2"):
        build("classifier", "layoutlmv2", 0)


def test_a_float32_operation_inside_a_model_is_noted():
    x = torch.ones(3, dtype=torch.float64)
    for layer, found in ((nn.Identity(), False), (lambda y: y.float().double(), True)):
        with exactness.Narrowings() as noted:
            layer(x)
        assert noted.found is found


def test_a_fisher_that_differs_is_found():
    expected = {"w": torch.tensor([1.0, 2.0]).double(), "unused": 0.0}
    found = {"w": expected["w"].clone(), "unused": torch.zeros(2).double()}
    assert exactness.worst(found, expected) == 0
    found["w"][1] += 2e-4
    assert exactness.worst(found, expected) == pytest.approx(10, rel=1e-2)


@pytest.mark.parametrize(("model_type", "depends"), [("fnet", True), ("bert", False)])
def test_whether_answers_depend_on_padding_is_found(model_type, depends, tmp_path):
    module = sweep.Models("classifier", model_type, tmp_path).module().eval()
    batches, found = exactness.batches_of("classifier", module)
    lengths = [
        {len(module.tokenizer(row["text"])["input_ids"]) for row in rows} for rows in batches
    ]
    assert found is depends
    assert sum(map(len, batches)) == 6 and all(len(one) == 1 for one in lengths) is depends


def test_a_model_without_numbers_in_float64_is_compared_in_float32(tmp_path):
    module = sweep.Models("classifier", "canine", tmp_path).module()
    with exactness.in_dtype(module, torch.float64):
        assert not exactness.is_stable("classifier", module, exactness.examples("classifier"))
    assert exactness.is_stable("classifier", module.eval(), exactness.examples("classifier"))


def test_a_cell_says_how_a_command_ended(tmp_path, capsys):
    log = tmp_path / "log"

    def mistake():
        sweep.command_line(["merge", "--output", str(tmp_path / "out")])

    def fault():
        raise KeyError("w")

    assert sweep.cell(lambda: "works", log) == "works"
    assert sweep.cell(mistake, log).startswith("refused: ")
    assert sweep.cell(fault, log) == "TRACEBACK: KeyError: 'w'"
    assert "in fault" in log.read_text()


def test_the_page(tmp_path):
    rows = {
        "classifier/one": EXACT,
        "causal/two": EXACT | {"fisher": "refused: no x", "RegMean": "refused: no x"},
        "causal/three": {"not built": "no size"},
    }
    table.write(rows, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "Of 2 architectures, 1 run through every command" in page
    assert "the average of 2 and the Fisher of 1 are exact" in page
    assert "| one | works | exact | exact | works | works | works | works |" in page
    assert "| two | works | exact | 1 | works | 1 | works | works |" in page
    assert "\n1. no x\n" in page and "- causal/three: no size" in page
