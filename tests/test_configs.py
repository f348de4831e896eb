"""Every shipped configuration runs, with a tiny model in the place of the real one."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from fmerge.cli.app import main
from fmerge.data import docs_matches
from fmerge.data.docs import TOPICS
from fmerge.data.template_files import shipped
from tests import tiny

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = CONFIGS / "quickstart"
DF_MERGE = CONFIGS / "df_merge"
LANGUAGE = CONFIGS / "language"
LIBRARIES = sorted(TOPICS)
QUESTIONS = sorted(
    path.stem for path in QUICKSTART.glob("*.yaml") if path.stem not in {"fit", "merge"}
)


@pytest.fixture
def few_sources(monkeypatch):
    """A small part of the quickstart's sources."""
    monkeypatch.setattr(docs_matches, "_SOURCES", {"sklearn": ["linear_model"]})
    docs_matches._pairs.cache_clear()
    yield
    docs_matches._pairs.cache_clear()


def test_every_question_of_the_quickstart_has_a_configuration():
    assert sorted(docs_matches._READERS) == QUESTIONS


@pytest.mark.parametrize(
    "question",
    [pytest.param(one, marks=() if one == "code" else pytest.mark.slow) for one in QUESTIONS],
)
def test_fit_and_fisher(question, few_sources, zoo, tmp_path):
    task = str(QUICKSTART / f"{question}.yaml")
    sizes = [
        f"--data.tasks.{question}.init_args.{split}={n}"
        for split, n in (("train", 8), ("validation", 4), ("test", 4))
    ]
    quiet = ["--trainer.enable_progress_bar=false", *sizes]
    output = tmp_path / question
    main([
        *["fit", "--config", str(QUICKSTART / "fit.yaml"), "--config", task, *quiet],
        *["--model.path", zoo.base, "--output", str(output), "--trainer.max_epochs=1"],
    ])
    main([
        *["fisher", "--config", task, *quiet, "--expert", str(output / "expert")],
        *["--examples=5", "--output", str(output / "fisher.safetensors")],
    ])
    assert (output / "fisher.safetensors").is_file()


@pytest.mark.slow
def test_merge(few_sources, zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, overrides = AutoModelForSequenceClassification.from_pretrained(zoo.base), []
    for question in QUESTIONS:
        labels = docs_matches.DocsMatches(question).labels
        expert = tiny.save(tiny.fine_tuned(base, labels), tmp_path / question)
        overrides.append(f"--experts.{question}={expert}")
        overrides += [
            f"--data.tasks.{question}.init_args.{split}=4"
            for split in ("train", "validation", "test")
        ]
    main([
        *["merge", "--config", str(QUICKSTART / "merge.yaml"), *overrides],
        *["--base", zoo.base, "--output", "out", "--method", "Average"],
        "--trainer.enable_progress_bar=false",
    ])
    there = {path.name for path in Path("out/merged").iterdir()}
    assert there == {*QUESTIONS, "README.md"}  # the card of all of them


def resolved(monkeypatch, capsys, command, *names) -> dict:
    """What a command would run with, of configurations that are given one after the other."""
    monkeypatch.chdir(CONFIGS.parent)
    capsys.readouterr()
    given = [part for name in names for part in ("--config", str(DF_MERGE / f"{name}.yaml"))]
    with pytest.raises(SystemExit) as end:
        main([command, *given, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("size", ["base", "large"])
def test_df_merge_trains_as_the_reference(size, monkeypatch, capsys):
    first = ["model", "large"] if size == "large" else ["model"]
    one = resolved(monkeypatch, capsys, "fit", *first, "fit", "tasks/paws")
    assert one["model"] == {
        "class_path": "fmerge.modules.RankChoice",
        "init_args": {
            "path": f"google-t5/t5-{size}",
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "scheduler": "constant",
            "warmup_fraction": 0.0,
            "max_length": 512,
        },
    }
    trainer = one["trainer"]
    assert one["data"]["batch_size"] * trainer["accumulate_grad_batches"] == 64
    assert (trainer["max_steps"], trainer["val_check_interval"]) == (2500, 100)
    assert trainer["check_val_every_n_epoch"] is None and trainer["precision"] == "bf16-mixed"
    assert (one["checkpoint"]["monitor"], one["checkpoint"]["mode"]) == ("val/loss", "min")
    whole = resolved(monkeypatch, capsys, "fit", *first, "fit", "mixture", "tasks/all")
    assert whole["trainer"]["max_steps"] == 25_000
    (stopping,) = whole["trainer"]["callbacks"]
    assert stopping["class_path"].endswith("EarlyStopping")
    assert stopping["init_args"]["patience"] == 20 and stopping["init_args"]["mode"] == "min"
    assert stopping["init_args"]["monitor"] == "val/loss"


@pytest.mark.parametrize("size", ["base", "large"])
def test_df_merge_merges_as_the_reference(size, monkeypatch, capsys):
    last = ["merge", "merge_large"] if size == "large" else ["merge"]
    found = resolved(monkeypatch, capsys, "merge", "model", "tasks/all", *last)
    assert found["base"] == f"google-t5/t5-{size}"
    paths = {task: f"runs/df_merge/t5-{size}/{task}/expert" for task in shipped()}
    experts = {
        task: one if isinstance(one, str) else one["path"] for task, one in found["experts"].items()
    }
    assert experts == paths
    assert found["method"]["class_path"].endswith(".DFMerge")
    settings = found["fisher"].get("init_args", found["fisher"])
    assert (settings["split"], settings["examples"]) == ("validation", 30)
    search = found["optimizer"]["search"]["init_args"]
    assert (search["trials"], search["initial_trials"], search["acquisition"]) == (60, 10, "ei")
    assert (search["xi"], search["kappa"]) == (0.01, 2.576)


@pytest.mark.parametrize("name", [*shipped(), "all", "all_saved"])
def test_df_merge_tasks_are_the_shipped_templates(name, monkeypatch, capsys):
    found = resolved(monkeypatch, capsys, "validate", "model", f"tasks/{name}")["data"]["tasks"]
    assert list(found) == (shipped() if name.startswith("all") else [name])
    for task, one in found.items():
        assert one["init_args"]["template"] == task
        source = one["init_args"]["source"]
        saved = name == "all_saved" or task == "story_cloze"
        assert source.startswith(f".dataset/{task}") if saved else source is None


def commands(text) -> list[list[str]]:
    joined = re.sub(r"\\\n(#?) *", " ", text)
    lines = [line.lstrip("# ") for line in joined.splitlines()]
    return [shlex.split(line) for line in lines if line.lstrip().startswith("fmerge ")]


@pytest.mark.parametrize("name", ["fit", "merge", "mixture", "model"])
def test_commands_in_headers_can_be_given(name, monkeypatch, capsys):
    """They parse, with every file they name; weights and data are not touched."""
    monkeypatch.chdir(CONFIGS.parent)
    found = commands((DF_MERGE / f"{name}.yaml").read_text())
    assert found
    for program, *arguments in found:
        assert program == "fmerge"
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--print_config"])
        assert end.value.code == 0, capsys.readouterr().err


def language_sizes(*libraries):
    return [
        f"--data.tasks.{library}.init_args.{split}=8"
        for library in libraries
        for split in ("train", "validation", "test")
    ]


@pytest.mark.slow
def test_language_models_are_fitted_and_merged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.language_model(tiny.gpt2_config()).save_pretrained("base")
    tiny.text_tokenizer("$A").save_pretrained("base")
    names = {path.stem for path in LANGUAGE.glob("*.yaml")}
    assert names == {"fit", "all", "merge", *LIBRARIES}
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    experts = []
    for library in LIBRARIES:
        task = ["--config", str(LANGUAGE / f"{library}.yaml"), *language_sizes(library), *quiet]
        main([
            *["fit", "--config", str(LANGUAGE / "fit.yaml"), *task, "--model.path=base"],
            *["--output", library, "--trainer.max_epochs=1"],
        ])
        main([
            *["fisher", *task, "--model=TextGenerator", "--model.max_new_tokens=3"],
            *["--expert", f"{library}/expert", "--estimator=sampled", "--examples=3"],
            *["--output", f"{library}/fisher.safetensors"],
        ])
        experts += [
            f"--experts.{library}.path={library}/expert",
            f"--experts.{library}.fisher={library}/fisher.safetensors",
        ]
    configs = [f"--config={LANGUAGE / name}.yaml" for name in ("all", "merge")]
    main([
        *["merge", *configs, *experts, *language_sizes(*LIBRARIES), *quiet, "--base=base"],
        *["--output=out", "--method=FisherMerge", "--optimizer.search=Fixed"],
    ])
    assert Path("out/merged/model.safetensors").is_file()


@pytest.mark.slow
def test_the_language_model_of_the_example_starts_its_texts(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("start", LANGUAGE / "start.py")
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    monkeypatch.setattr("sys.argv", ["start.py", "--output", str(tmp_path)])
    start.main()
    words = AutoTokenizer.from_pretrained(tmp_path)
    ids = words("The model is fitted.")["input_ids"]
    assert ids[0] == words.eos_token_id and len(words) == start.TOKENS
    assert words.decode(ids, skip_special_tokens=True) == "The model is fitted."
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.vocab_size, config.n_positions) == (start.TOKENS, 2 * start.LENGTH)
