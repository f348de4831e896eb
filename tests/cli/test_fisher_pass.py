"""The pass of ``fisher``: processes, precisions, interruptions, and modules of the user's own."""

import json
import multiprocessing
import os
import random
import signal
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from fmerge.cli.app import main
from fmerge.errors import UserError
from fmerge.fisher import FisherAccumulator, estimate_fisher
from fmerge.modules import fisher_pass as accumulate
from fmerge.store import read_fisher
from fmerge.system.watchdog import check_strategy
from tests import tiny
from tests.cli.run import data_config, fails, in_process
from tests.compare import assert_same, relative_error


def command(zoo, folder, output, *options):
    return [
        *["fisher", "--config", data_config(zoo, folder, "colour")],
        *["--expert", zoo.experts["colour"], "--output", output, *options],
    ]


def run(*args):
    main([str(arg) for arg in args])


def text_to_text(folder):
    """A tiny T5, and 13 prompts of many lengths with 2 to 4 choices."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(tiny.t5_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder / "t5")
    tiny.text_tokenizer().save_pretrained(folder / "t5")
    rows = [
        {"text": text, "choices": tiny.sentences(2 + i % 3, i), "answer": i % 2}
        for i, text in enumerate(tiny.sentences(13, seed=9))
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = {"text": "{{ text }}", "choices": "{{ choices }}", "label": "{{ answer }}"}
    task = {
        "class_path": "Prompted",
        "init_args": {"splits": {"validation": str(file)}, **template},
    }
    config = {
        "model": {"class_path": "RankChoice"},
        "data": {"batch_size": 4, "tasks": {"rows": task}},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "rows.yaml").write_text(yaml.safe_dump(config))
    return ["--config", folder / "rows.yaml", "--expert", folder / "t5"]


@pytest.mark.parametrize(
    ("kind", "several"),
    [
        pytest.param("classes, exact", 3, marks=pytest.mark.slow),
        pytest.param("choices, exact", 2, marks=pytest.mark.slow),
        pytest.param("classes, exact", 2, marks=pytest.mark.slow),
        pytest.param("choices, exact", 3, marks=pytest.mark.slow),
        pytest.param("classes, sampled", 2, marks=pytest.mark.slow),
        pytest.param("classes, sampled", 3, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_gives_the_fisher_of_one(
    zoo, tmp_path, kind, several, record_property
):
    """13 examples in batches of 4: the last batches are uneven, and no example counts twice."""
    data, estimator = kind.split(", ")
    given = ["--config", data_config(zoo, tmp_path, "colour"), "--expert", zoo.experts["colour"]]
    if data == "choices":
        given = text_to_text(tmp_path)
    found = {}
    for processes, start in ((1, run), (several, in_process)):
        output = tmp_path / f"fisher_{processes}.safetensors"
        strategy = "ddp" if processes > 1 else "auto"
        start(
            *["fisher", *given, "--output", output, "--split", "validation"],
            *["--estimator", estimator, "--standard_error", "true"],
            *["--trainer.devices", processes, "--trainer.strategy", strategy],
        )
        found[processes], provenance = read_fisher(output)
        assert provenance["examples"] == 13
        assert 0 < provenance["relative_standard_error"] < 1
    error = relative_error(found[several], found[1])
    record_property(
        "figure", f"Fisher of {kind}, of {several} processes: relative error {error:.1e} of 1"
    )
    assert error < 1e-6


def test_half_precisions_are_close(zoo, tmp_path, record_property):
    found = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true", "16-true"):
        output = tmp_path / f"{precision}.safetensors"
        run(*command(zoo, tmp_path, output, "--trainer.precision", precision))
        found[precision], provenance = read_fisher(output)
        assert provenance["precision"] == precision
        assert all(value.dtype == torch.float32 for value in found[precision].values())
    for precision, bound in (("bf16-mixed", 0.05), ("bf16-true", 0.05), ("16-true", 0.01)):
        error = relative_error(found[precision], found["32-true"])
        record_property("figure", f"Fisher under {precision}: relative error {error:.4f}")
        assert 1e-6 < error < bound, precision


def test_one_batch_says_nothing_of_the_error(zoo, tmp_path, capsys):
    output = tmp_path / "fisher.safetensors"
    run(*command(zoo, tmp_path, output, "--standard_error", "true", "--data.batch_size", "20"))
    assert "total: not known from a single batch" in capsys.readouterr().out
    assert "relative_standard_error" not in read_fisher(output)[1]


def test_until_stops_by_the_error_and_says_it(zoo, tmp_path, capsys):
    output = tmp_path / "fisher.safetensors"
    run(*command(zoo, tmp_path, output, "--until", "0.9", "--data.batch_size", "1"))
    provenance = read_fisher(output)[1]
    # of 20 training examples the fewest that say anything of a variance
    assert provenance["examples"] == 16 and provenance["relative_standard_error"] < 0.9
    assert f"total: {100 * provenance['relative_standard_error']:.1f}%" in capsys.readouterr().out
    line = fails(capsys, *command(zoo, tmp_path, tmp_path / "x.h5", "--until", "5"))
    assert "until: is 5.0, but a relative error lies between 0 and 1" in line


def die_in(moment, times):
    """Kills this process at the given moment of the pass, the given time it comes."""
    left = iter(range(times))

    def dying(function):
        def wrapped(*args, **kwargs):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    if moment == "batch":
        FisherAccumulator.add = dying(FisherAccumulator.add)
    elif moment == "saving":
        accumulate.write_partial = dying(accumulate.write_partial)
    else:  # between the temporary file and its new name
        from fmerge.store import atomic

        atomic._sync = dying(atomic._sync)


def killed_run(arguments, moment, times):
    torch.set_num_threads(1)
    die_in(moment, times)
    run(*arguments)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "estimator",
    ["exact", pytest.param("sampled", marks=SLOW), pytest.param("rademacher", marks=SLOW)],
)
def test_a_killed_pass_goes_on_to_the_same_fisher_bit_for_bit(
    zoo, tmp_path, estimator, capsys, record_property
):
    options = ["--estimator", estimator, "--data.batch_size", "2", "--save_every", "0"]
    options += ["--samples", "2", "--standard_error", "true"]
    whole, output = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    run(*command(zoo, tmp_path, whole, *options))
    generator, kills = random.Random(estimator), []
    arguments = command(zoo, tmp_path, output, *options)
    for _ in range(4):
        moment = generator.choice(["batch", "saving", "renaming"])
        kills.append((moment, generator.randrange(1, 4)))
        process = multiprocessing.get_context("fork").Process(
            target=killed_run, args=(arguments, *kills[-1])
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not output.exists()
    left = list(tmp_path.glob("killed.unfinished-0-of-1.safetensors"))
    assert left and not output.exists(), "no kill came late enough to leave anything"
    capsys.readouterr()
    run(*arguments)
    found, expected = read_fisher(output), read_fisher(whole)
    assert found[1] == expected[1]
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())
    assert not list(tmp_path.glob("*unfinished*"))
    record_property("figure", f"{estimator}: killed at {kills}, same Fisher bit for bit")


def test_unfinished_sums_of_other_work_are_not_gone_on_with(zoo, tmp_path, caplog):
    output = tmp_path / "fisher.safetensors"
    options = ["--data.batch_size", "2", "--save_every", "0"]
    arguments = command(zoo, tmp_path, output, *options)
    process = multiprocessing.get_context("fork").Process(
        target=killed_run, args=(arguments, "batch", 3)
    )
    process.start()
    process.join()
    assert list(tmp_path.glob("*unfinished*"))
    run(*arguments, "--estimator", "empirical")
    assert "is of other work (estimator was exact, is empirical); beginning anew" in caplog.text
    fresh = tmp_path / "fresh.safetensors"
    run(*command(zoo, tmp_path, fresh, *options, "--estimator", "empirical"))
    assert_same(read_fisher(output)[0], read_fisher(fresh)[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--standard_error", "true"], "standard_error was False, is True"),
        pytest.param(["--model.max_length", "3"], "module was", marks=pytest.mark.slow),
    ],
)
def test_what_changes_the_batches_begins_anew(zoo, tmp_path, caplog, change, named):
    output, fresh = tmp_path / "fisher.safetensors", tmp_path / "fresh.safetensors"
    options = ["--data.batch_size", "2", "--save_every", "0"]
    process = multiprocessing.get_context("fork").Process(
        target=killed_run, args=(command(zoo, tmp_path, output, *options), "batch", 3)
    )
    process.start()
    process.join()
    assert list(tmp_path.glob("*unfinished*"))
    run(*command(zoo, tmp_path, output, *options, *change))
    assert named in caplog.text
    run(*command(zoo, tmp_path, fresh, *options, *change))
    found, expected = read_fisher(output), read_fisher(fresh)
    assert found[1] == expected[1]
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())


class Own(LightningModule):
    """A user's own module: nothing of Hugging Face in it, and a layer that no rule covers."""

    def __init__(self, width: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(40, width)
        self.mix = nn.Bilinear(width, width, 3)

    def label_log_probs(self, batch):
        mean = self.embedding(batch["ids"]).mean(1)
        return self.mix(mean, mean).log_softmax(1)

    def collate(self, examples, task):
        ids = [[len(word) for word in (one["text"].split() * 9)[:9]] for one in examples]
        labels = torch.tensor([one["label"] for one in examples])
        return {"ids": torch.tensor(ids), "labels": labels}


class Bare(LightningModule):
    pass


def test_a_module_of_the_users_own_works_by_its_class_path(zoo, tmp_path, capsys):
    config = data_config(zoo, tmp_path, "colour")
    module = Own(5)
    with torch.no_grad():
        module.mix.weight.mul_(2)
    checkpoint = tmp_path / "own.ckpt"
    torch.save({"state_dict": module.state_dict()}, checkpoint)
    output = tmp_path / "own.safetensors"
    model = ["--model", "tests.cli.test_fisher_pass.Own", "--model.width", "5"]
    run(
        *["fisher", "--config", config, *model, "--expert", checkpoint, "--output", output],
        *["--split", "validation", "--estimator", "empirical"],
    )
    lines = [line.rsplit(",", 1) for line in open(zoo.tasks["colour"]["validation"])][1:]
    labels = tiny.LABELS["colour"]
    examples = [{"text": text, "label": labels.index(name.strip())} for text, name in lines]
    expected = estimate_fisher(
        module, [module.collate([one], "") for one in examples], module.label_log_probs, "empirical"
    )
    values, provenance = read_fisher(output)
    assert_same(values, expected.values, rtol=1e-4)
    assert provenance["examples"] == len(examples)

    fisher = ["fisher", "--config", config, "--output", tmp_path / "x.h5"]
    bare = ["--model", "tests.cli.test_fisher_pass.Bare"]
    assert "Bare has no label_log_probs(batch)" in fails(capsys, *fisher, *bare)
    own = ["--model", "tests.cli.test_fisher_pass.Own"]
    assert "own.ckpt: does not fit Own: " in fails(capsys, *fisher, *own, "--expert", checkpoint)
    other = fails(capsys, *fisher, *own, "--expert", zoo.base)
    assert "a Own is read from a Lightning .ckpt" in other
    assert "--expert: required but not given" in fails(capsys, *fisher)


def test_a_module_without_its_own_collate_gets_plain_batches(zoo, tmp_path):
    output = tmp_path / "plain.safetensors"
    run(
        *["fisher", "--config", data_config(zoo, tmp_path, "colour"), "--output", output],
        *["--model", "tests.cli.test_fisher_pass.Plain"],
    )
    values, provenance = read_fisher(output)
    # at zero weights p = ½ each: F of the logits' bias is ½·½² + ½·½²
    assert_same(values, {"bias": torch.tensor([0.25, 0.25])})
    assert json.loads(json.dumps(provenance))["model"] == "Plain"


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def label_log_probs(self, batch):
        assert isinstance(batch["text"][0], str)
        return (torch.zeros(len(batch["labels"]), 2) + self.bias).log_softmax(1)


def test_strategies_that_split_or_lose_the_sums_are_refused():
    def trainer(strategy, launcher=None):
        if launcher is not None:
            strategy._launcher = launcher
        return SimpleNamespace(strategy=strategy)

    check_strategy(trainer(SingleDeviceStrategy()))
    check_strategy(trainer(DDPStrategy()))
    with pytest.raises(UserError, match="FSDP splits a parameter .*, ddp or a single"):
        check_strategy(trainer(FSDPStrategy()))
    spawned = DDPStrategy(start_method="spawn", cluster_environment=LightningEnvironment())
    spawned._configure_launcher()
    with pytest.raises(UserError, match="do not come back; use ddp"):
        check_strategy(trainer(spawned))
