"""``fmerge merge --method RegMean``: Grams of the tasks' examples, no Fisher file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fmerge.cli.app import main
from fmerge.methods import Gram, RegMean
from fmerge.search.parameter_groups import partition
from tests import tiny
from tests.cli.run import data_config, experts, fails, in_process
from tests.compare import assert_same


def grams(path, file):
    """Σ x xᵀ by a plain loop: one text at a time, so that nothing is padded."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    sums = {}

    def hook(name):
        def add(layer, inputs, output):
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + rows.T @ rows

        return add

    for name, layer in model.named_modules():
        if type(layer) is torch.nn.Linear and name.startswith("bert."):
            layer.register_forward_hook(hook(f"{name}.weight"))
    texts = [line.rsplit(",", 1)[0] for line in Path(file).read_text().splitlines()[1:]]
    with torch.no_grad():
        for text in texts:
            model(**tiny.tokenizer()(text, return_tensors="pt"))
    return {name: Gram(total) for name, total in sums.items()}


def test_groups_and_a_donor(zoo, tmp_path):
    """A donor's Grams are of the target's texts; each group has coefficients of its own."""
    donor = json.dumps({"path": zoo.experts["animal"], "donor": True})
    coefficients = {
        f"{name}/{group}": 0.1 * (i + 1) * (2 if name == "colour" else 3)
        for name in ("colour", "animal")
        for i, group in enumerate(("block0", "block1"))
    }
    main([
        *["merge", "--config", data_config(zoo, tmp_path, "colour"), "--method", "RegMean"],
        *["--method.off_diagonal", "0.6", "--output", str(tmp_path / "out")],
        *[f"--experts.colour={zoo.experts['colour']}", f"--experts.animal={donor}"],
        *["--optimizer.groups", "2", "--optimizer.search", "Fixed", "--baselines", "experts"],
        *["--optimizer.search.coefficients", json.dumps(coefficients)],
    ])
    models = [
        AutoModelForSequenceClassification.from_pretrained(zoo.experts[name])
        for name in ("colour", "animal")
    ]
    bodies = [
        {k: v.detach() for k, v in one.named_parameters() if k.startswith("bert.")}
        for one in models
    ]
    given = [
        grams(zoo.experts[name], zoo.tasks["colour"]["validation"]) for name in ("colour", "animal")
    ]
    expected = {}
    for group, names in partition(list(bodies[0]), 2).items():
        expected |= RegMean(off_diagonal=0.6).merge(
            None,
            [{name: one[name] for name in names} for one in bodies],
            [coefficients[f"{name}/{group}"] for name in ("colour", "animal")],
            given,
        )
    found = load_file(tmp_path / "out/merged/model.safetensors")
    assert_same({name: found[name] for name in expected}, expected)


@pytest.mark.slow
def test_two_processes_merge_as_one(zoo, tmp_path):
    """13 examples a task in batches of 4: the processes have unequally many."""
    for processes in (1, 2):
        in_process(
            *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo)],
            *["--method", "RegMean", "--optimizer.search", "Fixed", "--baselines", "experts"],
            *["--output", tmp_path / str(processes), "--trainer.devices", processes],
            *["--trainer.strategy", "ddp" if processes > 1 else "auto"],
        )
    one, two = (load_file(tmp_path / f"{n}/merged/colour/model.safetensors") for n in (1, 2))
    assert_same(two, one)


def test_it_needs_data(zoo, tmp_path, capsys):
    line = fails(
        capsys, "merge", *experts(zoo), "--method", "RegMean", "--output", tmp_path / "out"
    )
    assert line.endswith("RegMean: needs data to estimate Grams on; give --data")


def test_a_dry_run_names_their_memory(zoo, tmp_path, capsys):
    main([
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--method", "RegMean"],
        *["--output", str(tmp_path / "out"), "--dry_run", "true"],
    ])
    # 2 layers with 5 matrices of 16 inputs and one of 24, and the pooler's, in float32
    size = 2 * 4 * (2 * (5 * 16**2 + 24**2) + 16**2) / 2**20
    assert f"Grams {size:.1f} MiB (2)" in capsys.readouterr().out
