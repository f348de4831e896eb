"""The configurations of images: their commands parse, and CLIP's eight tasks merge."""

from pathlib import Path

import pytest
import yaml

from fmerge.cli.app import main
from tests import tiny_images
from tests.test_configs import CONFIGS, commands
from tests.tiny import moved_near

TASKS = ["sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
CLIP = CONFIGS / "clip8"


def read(name):
    return yaml.safe_load((CLIP / f"{name}.yaml").read_text())


def test_the_files_are_of_the_same_eight_tasks():
    every = read("tasks/all")["data"]["tasks"]
    assert list(every) == TASKS == list(read("merge")["experts"])
    assert all(read(f"tasks/{task}")["data"]["tasks"] == {task: every[task]} for task in TASKS)
    options = read("model")["model"]["init_args"]
    assert list(options["templates"]) == TASKS
    assert all(one.count("{}") == 1 for own in options["templates"].values() for one in own)
    assert {k: len(set(v)) for k, v in options["class_texts"].items()} == {
        "eurosat": 10, "gtsrb": 43,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/fit", "digits/merge", "clip8/fit", "clip8/merge"])
def test_commands_in_headers_can_be_given(name, monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    found = commands((CONFIGS / f"{name}.yaml").read_text())
    assert found
    for _, *arguments in found:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--print_config"])
        assert end.value.code == 0, capsys.readouterr().err


@pytest.mark.slow
def test_clip_on_eight_tasks(tmp_path):
    """Tiny towers and a few images in the hub's layout, in the place of the public ones."""
    base = tiny_images.save_clip(tmp_path / "clip", "clip")
    given = [f"--model.path={base}", f"--base={base}", f"--output={tmp_path / 'out'}"]
    classes = {"eurosat": 10, "gtsrb": 43}
    origin = tiny_images.clip("clip").vision_model
    for k, task in enumerate(TASKS):
        tower = moved_near(tiny_images.clip("clip", seed=k + 1).vision_model, origin)
        tower.save_pretrained(tmp_path / f"expert_{task}")
        labels = [f"{i:02}" for i in range(classes.get(task, 3))]
        for split, n in {"train": 2 * len(labels), "test": len(labels)}.items():
            tiny_images.write_folder(tmp_path / task / split, labels, n, seed=k)
        given += [f"--experts.{task}={tmp_path / f'expert_{task}'}"]
        options = f"--data.tasks.{task}.init_args"
        given += [f"{options}.source={tmp_path / task}", f"{options}.name=null"]
    main([
        *["merge", "--config", str(CLIP / "model.yaml"), "--config", str(CLIP / "tasks/all.yaml")],
        *["--config", str(CLIP / "merge.yaml"), *given, "--method=TaskArithmetic"],
        *["--optimizer.search=Fixed", "--baselines=experts", "--data.num_workers=0"],
        *["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"],
    ])
    merged = Path(tmp_path / "out" / "merged")
    assert (merged / "model.safetensors").is_file() and (merged / "tokenizer.json").is_file()
