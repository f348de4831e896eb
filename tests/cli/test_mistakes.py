"""What users mistype: each ends in one line with the option, what was found and what is known."""

from pathlib import Path

import pytest

from tests import tiny
from tests.cli.run import data_config, experts, fails

pytestmark = pytest.mark.slow

TRAINER = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def place(zoo, tmp_path_factory):
    """A user's folder, and command lines that a mistake is added to."""
    folder = tmp_path_factory.mktemp("mistakes")
    files = {
        "list.yaml": "- a\n- b\n",
        "tab.yaml": "data:\n\tbatch_size: 4\n",
        "typo.yaml": "experts: {a: x, b: y}\nmetod: TIES\noutput: o\n",
        "nested.yaml": "data: {batchsize: 4}\n",
        "class.yaml": "data: {tasks: {colour: {class_path: TextFles}}}\n",
        "key.yaml": "data: {tasks: {colour: {class_path: TextFiles, init_args: {trian: x.csv}}}}\n",
        "columns.csv": "sentence,gold\nred,warm\n",
        "full/file.txt": "mine",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    wide = tiny.classifier(tiny.bert_config(tiny.LABELS["animal"], hidden_size=32))
    tiny.save(wide, folder / "wide")
    config = ["--config", data_config(zoo, folder)]
    single = ["--config", data_config(zoo, folder, "colour")]
    colour, animal = zoo.experts["colour"], zoo.experts["animal"]
    lines = {
        "plain": ["merge", *experts(zoo), "--output=out"],
        "merge": ["merge", *config, *experts(zoo), "--output=out"],
        "one": ["merge", *single, *experts(zoo), "--output=out", "--method=Isotropic"],
        "pair": ["merge", "--output=out"],
        "fisher": ["fisher", *config, "--expert", colour, "--output=f.safetensors"],
        "fit": ["fit", *single, "--output=run", "--model.path", zoo.base],
        "nothing": [],
    }
    names = {"{colour}": colour, "{animal}": animal, "{csv}": zoo.tasks["colour"]["train"]}
    return folder, lines, names


MISTAKES = [
    # unknown options, at every level
    ("nothing", ["mege"], ["invalid choice: 'mege'", "merge"]),
    ("plain", ["--methd=TIES"], ["--methd: no such option", "--method"]),
    ("merge", ["--trainer.device=2"], ["--trainer.device", "--trainer.devices"]),
    ("merge", ["--data.batchsize=4"], ["--data.batchsize", "batch_size"]),
    ("merge", ["--optimizer.serach=Sobol"], ["--optimizer.serach", "search"]),
    ("merge", ["--optimizer.search=Sobol", "--optimizer.search.trails=5"], ["trails", "trials"]),
    ("plain", ["--method=TIES", "--method.densty=1"], ["--method.densty", "density"]),
    ("merge", ["--model.lr=1"], ["--model.lr", "learning_rate"]),
    ("fisher", ["--exmaples=5"], ["--exmaples", "--examples"]),
    ("fit", ["--checkpoint.monitr=x"], ["--checkpoint.monitr", "monitor"]),
    # misspelt methods, searches, tasks, models, values
    ("plain", ["--method=Tyes"], ["--method: unknown class 'Tyes'", "TIES"]),
    ("plain", ["--method=mine.Merge"], ["--method", "mine.Merge", "TIES"]),
    ("merge", ["--optimizer.search=Sobl"], ["--optimizer.search: unknown class 'Sobl'", "Sobol"]),
    ("plain", ["--config=class.yaml"], ["--data.tasks", "TextFles", "TextFiles"]),
    ("merge", ["--model=TextClasifier"], ["--model: unknown class", "TextClassifier"]),
    ("merge", ["--optimizer.objective=meen"], ["--optimizer.objective", "'meen'", "mean, "]),
    ("fisher", ["--estimator=exct"], ["--estimator: unknown value 'exct'", "exact, "]),
    ("plain", ["--baselines=none"], ["--baselines: unknown value 'none'", "all, experts"]),
    ("merge", ["--trainer.precision=foo"], ["--trainer", "foo", "bf16"]),
    ("merge", ["--trainer.strategy=foo"], ["--trainer", "foo", "ddp"]),
    ("merge", ["--trainer.accelerator=foo"], ["--trainer", "foo", "cpu"]),
    # wrong types and ranges
    ("plain", ["--method=TIES", "--method.density=half"], ["density", "a number", "'half'"]),
    ("plain", ["--method=TIES", "--method.density=5"], ["density", "5"]),
    ("merge", ["--optimizer.search.trials=many"], ["trials", "a whole number", "'many'"]),
    ("merge", ["--data.batch_size=big"], ["--data.batch_size", "'big'"]),
    ("plain", ["--overwrite=maybe"], ["--overwrite", "true or false", "'maybe'"]),
    ("plain", ["--coefficients=0.3"], ["--coefficients", "a mapping", "0.3"]),
    ("plain", ["--output"], ["--output: needs a value"]),
    # missing files
    ("pair", ["--experts.a=absent", "--experts.b={animal}"], ["absent"]),
    ("plain", ["--method=TIES", "--base=absent"], ["absent"]),
    ("nothing", ["merge", "--config=absent.yaml"], ["--config", "absent.yaml"]),
    ("fit", ["--ckpt_path=absent.ckpt"], ["absent.ckpt"]),
    # swapped paths
    ("pair", ["--experts.a={csv}", "--experts.b={animal}"], ["colour_train.csv"]),
    ("pair", ["--experts.a={animal}", "--experts.b={animal}", "--output={csv}"],
     ["--output", "colour_train.csv", "is a file"]),
    ("plain", ["--config={csv}"], ["--config", "colour_train.csv"]),
    # wrong YAML
    ("nothing", ["merge", "--config=list.yaml"], ["--config list.yaml", "list"]),
    ("nothing", ["merge", "--config=tab.yaml"], ["--config tab.yaml", "no YAML"]),
    ("nothing", ["merge", "--config=typo.yaml"], ["metod", "method"]),
    ("plain", ["--config=nested.yaml"], ["batchsize"]),
    ("plain", ["--config=key.yaml"], ["trian", "train"]),
    # what does not go together
    ("pair", ["--experts.a={colour}"], ["--experts", "at least two"]),
    ("pair", ["--experts.a={colour}", "--experts.b=wide"], ["wide", "(18, 32)", "(18, 16)"]),
    ("plain", ["--method=TIES"], ["TIES", "--base"]),
    ("one", TRAINER, ["--experts", "animal", "the data's tasks are colour"]),
    ("plain", ["--output=full"], ["--output", "full", "not empty"]),
    ("plain", ["--method=Isotropic", "--coefficients={colours: 1, animal: 1}"],
     ["coefficients", "colours", "colour"]),
    ("merge", ["--optimizer.target=colours"], ["--optimizer.target", "colours", "colour"]),
    ("fisher", [*TRAINER], ["--task", "colour"]),
    # machines that are not there
    ("merge", ["--trainer.accelerator=gpu"], ["--trainer"]),
    ("merge", ["--trainer.accelerator=cpu", "--trainer.devices=999"],
     ["--trainer.devices: is 999", "cores"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "mistake", "says"), MISTAKES, ids=[" ".join(one[1]) for one in MISTAKES]
)
def test_a_mistake_ends_in_one_line(place, line, mistake, says, capsys, monkeypatch):
    folder, lines, names = place
    monkeypatch.chdir(folder)
    before = sorted(Path().rglob("*"))
    given = [*lines[line], *mistake]
    for short, path in names.items():
        given = [one.replace(short, path) for one in given]
    if "accelerator=gpu" in given[-1]:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = fails(capsys, *given)
    assert [part for part in says if part not in found] == [], found
    assert sorted(Path().rglob("*")) == before
