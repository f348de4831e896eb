"""Ten jobs that a reader does with the documentation alone: the commands of its pages, as written.

A merge of one's own CSV files and a Fisher before it are in ``test_tutorial``, a module of one's
own in ``test_own_modules``; the other seven are here, on models that fit into a few kilobytes.
"""

import csv
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fmerge
from fmerge.runs import job
from fmerge.store import RunFolder, read_fisher
from tests import tiny, tiny_images
from tests.cli.run import data_config
from tests.compare import assert_same
from tests.docs.pages import block, files, page, run
from tests.merging.streamed import save_experts
from tests.store.hub_stand_in import Hub

pytestmark = pytest.mark.slow

CPU = {"accelerator": "cpu", "enable_progress_bar": False}
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The reader's folder, which commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def searching(trials):
    return {"search": {"class_path": "Sobol", "init_args": {"trials": trials}}}


def lines(name, containing):
    """The commands of a block, one by one."""
    text = block(f"docs/{name}.md", "sh", containing).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("fmerge ")]


def trials(output):
    records = map(json.loads, Path(output, "trials.jsonl").read_text().splitlines())
    return [one for one in records if not one.get("stage")]


def best(output):
    """The coefficients that scored best; of several that did, any may have been taken."""
    found = trials(output)
    most = max(one["objective"] for one in found)
    return [one["coefficients"] for one in found if one["objective"] == most]


def merged(method, coefficients, experts, base, prefix=""):
    """A merge of folders from Python, by its body's tensors."""

    def read(path):
        return {k: v for k, v in fmerge.load_params(str(path)).items() if k.startswith(prefix)}

    models = {name: read(path) for name, path in experts.items()}
    return fmerge.merge(models, method, coefficients, base=read(base))


def is_one_of(saved, expected):
    """Whether saved tensors are those of one of several merges."""
    return any(
        all(torch.allclose(saved[name], one, rtol=1e-4, atol=1e-6) for name, one in made.items())
        for made in expected
    )


def mine(zoo, folder, count):
    """The tutorial's mine.yaml: base, experts and data of two tasks, and a short search."""
    config = yaml.safe_load(Path(data_config(zoo, folder)).read_text())
    config |= {"base": zoo.base, "experts": zoo.experts, "optimizer": searching(count)}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))


def write_rows(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_text_to_text_models_on_prompts(folder):
    save_experts(folder / "path/to", tiny.t5_config(), dtype=torch.float32, size="1GB")
    names = {"base": "t5", "a": "t5_winogrande", "b": "t5_colours"}
    for old, new in names.items():
        (folder / "path/to" / old).rename(folder / "path/to" / new)
    things = [
        (text, "red green blue".split()[i % 3]) for i, text in enumerate(tiny.sentences(6, 1))
    ]
    gaps = [(f"{text} _", "cat", "dog", 1 + i % 2) for i, text in enumerate(tiny.sentences(6, 2))]
    for split in ("dev", "test"):
        write_rows(f"{split}.csv", ["thing", "colour"], things)
        write_rows(f"gaps_{split}.csv", ["sentence", "option1", "option2", "answer"], gaps)
    config = yaml.safe_load(files(page("docs/prompts.md"))["prompts.yaml"])
    local = {"validation": "gaps_dev.csv", "test": "gaps_test.csv"}
    config["data"]["tasks"]["winogrande"]["init_args"] |= {"splits": local}  # not from the hub
    config |= {"optimizer": searching(2), "trainer": CPU}
    Path("prompts.yaml").write_text(yaml.safe_dump(config))
    (command,) = lines("prompts", "prompts.yaml")
    run(command)
    experts = {"winogrande": "path/to/t5_winogrande", "colours": "path/to/t5_colours"}
    made = [merged("TIES", one, experts, "path/to/t5") for one in best("merged_t5")]
    assert is_one_of(fmerge.load_params("merged_t5/merged"), made)
    assert "| this merge |" in Path("merged_t5/report.md").read_text()


def test_a_causal_model_tensor_by_tensor(folder, monkeypatch):
    save_experts(folder / "path/to", tiny.llama_config())
    for old, new in {"base": "llm", "a": "llm_math", "b": "llm_code"}.items():
        (folder / "path/to" / old).rename(folder / "path/to" / new)
    read, how = job.loaded, []
    monkeypatch.setattr(job, "loaded", lambda *given: (how.append(given[-1]), read(*given))[1])
    (command,) = lines("large_models", "merged_llm")
    run(command, *QUIET)
    assert how == ["places"]  # no model was read as a whole
    experts = {"math": "path/to/llm_math", "code": "path/to/llm_code"}
    expected = merged("TIES", None, experts, "path/to/llm")
    assert_same(fmerge.load_params("merged_llm/merged"), expected, rtol=0, atol=0)


def test_adapters(folder, zoo):
    pytest.importorskip("peft")
    from tests.adapters import make_adapter

    bodies = {}
    for seed, (task, labels) in enumerate(tiny.LABELS.items()):
        options = {"num_labels": len(labels), "ignore_mismatched_sizes": True}
        lora = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"]}
        made = make_adapter(zoo.base, folder / "adapters" / task, seed, options=options, **lora)
        bodies[task] = dict(made.named_parameters())
    config = yaml.safe_load(Path(data_config(zoo, folder)).read_text())
    Path("tasks.yaml").write_text(yaml.safe_dump(config | {"optimizer": searching(2)}))
    for command in lines("adapters", "colour.safetensors"):
        run(command)
    fisher, _ = read_fisher(folder / "colour.safetensors")
    assert float(sum(one.sum() for one in fisher.values())) > 0
    name = "bert.encoder.layer.1.attention.self.value.weight"
    origin, saved = (
        fmerge.load_params(zoo.base)[name],
        load_file("merged/merged/animal/model.safetensors"),
    )
    expected = [
        {name: origin + sum(one[task] * (bodies[task][name] - origin) for task in bodies)}
        for one in best("merged")
    ]
    assert is_one_of(saved, expected)


def test_images(folder):
    zoo = tiny_images.make_zoo(folder / "zoo")
    config = yaml.safe_load(files(page("docs/images.md"))["mine.yaml"])
    own = dict(zip(config["experts"], zoo.experts, strict=True))
    for name, task in own.items():
        shutil.copytree(zoo.experts[task], config["experts"][name])
    birds, plants = (zoo.tasks[task] for task in own.values())
    for split, short in {"train": "train", "validation": "val", "test": "test"}.items():
        shutil.copytree(birds[split], f"birds/{short}")
        pictures = sorted(Path(plants[split]).rglob("*.png"))
        rows = [(os.path.relpath(one), one.parent.name) for one in pictures]
        write_rows(f"{short}.csv", ["path", "label"], rows)
    config |= {"base": zoo.base, "optimizer": searching(2), "trainer": CPU}
    config["data"]["num_workers"] = 0
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    (command,) = lines("images", "mine.yaml")
    run(command)
    prefix = "vit.encoder"
    made = [
        merged("TaskArithmetic", one, config["experts"], zoo.base, prefix) for one in best("merged")
    ]
    assert made[0]
    for name in own:
        assert is_one_of(load_file(f"merged/merged/{name}/model.safetensors"), made)


def killed(command, after):
    append, left = RunFolder.append, iter(range(after))

    def dying(self, record):
        append(self, record)
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.append = dying
    run(command)


def test_a_merge_goes_on_after_a_kill(folder, zoo, capsys):
    mine(zoo, folder, 5)
    first, second = lines("commands", "killed after some trials")
    run(first.replace("night", "whole"))
    process = multiprocessing.get_context("fork").Process(target=killed, args=(first, 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(trials("night")) == 3
    capsys.readouterr()
    run(second)
    assert "Resuming after 3 trials" in capsys.readouterr().out
    assert trials("night") == trials("whole") and len(trials("night")) >= 5
    for task in zoo.experts:
        path = f"merged/{task}/model.safetensors"
        assert Path("night", path).read_bytes() == Path("whole", path).read_bytes()


def test_a_point_of_a_front(folder, zoo):
    mine(zoo, folder, 8)
    search, build = lines("commands", "--build 7")
    run(search)
    front = json.loads(Path("front/pareto.json").read_text())
    assert front and Path("front/report.html").is_file()
    run(build)
    (chosen,) = [one["coefficients"] for one in trials("front") if one["trial"] == 7]
    made = merged("TaskArithmetic", chosen, zoo.experts, zoo.base, "bert.")
    for task in zoo.experts:
        assert is_one_of(load_file(f"front/points/7/merged/{task}/model.safetensors"), [made])


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_merge_on_the_hub(folder, zoo, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    Path("my.yaml").write_text(yaml.safe_dump({"experts": zoo.experts}))
    (command,) = lines("hub", "HF_TOKEN")
    run(command, *QUIET)
    saved = Path("runs/night/merged")
    expected = {
        str(one.relative_to(saved)): one.read_bytes() for one in saved.rglob("*") if one.is_file()
    }
    assert hub.files == expected and hub.commits == 1
    # the folder that the page's Python loads
    assert 'subfolder="colour"' in block("docs/hub.md", "python", "alice/night")
    assert {"colour/config.json", "colour/model.safetensors"} <= hub.files.keys()
    hub.shutdown()
    hub.server_close()
