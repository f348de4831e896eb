"""Every shipped configuration runs, with a tiny model in the place of the real one."""

from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from fmerge.cli import main
from fmerge.data.docs import TOPICS
from tests import tiny

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart"
LIBRARIES = sorted(
    path.stem for path in QUICKSTART.glob("*.yaml") if path.stem not in {"fit", "merge"}
)


def test_every_library_of_the_quickstart_has_a_configuration():
    assert sorted(TOPICS) == LIBRARIES


@pytest.mark.parametrize("library", LIBRARIES)
def test_fit_and_fisher(library, zoo, tmp_path):
    task = str(QUICKSTART / f"{library}.yaml")
    sizes = [
        f"--data.tasks.{library}.init_args.{split}={n}"
        for split, n in (("train", 8), ("validation", 4), ("test", 4))
    ]
    quiet = ["--trainer.enable_progress_bar=false", *sizes]
    output = tmp_path / library
    main([
        *["fit", "--config", str(QUICKSTART / "fit.yaml"), "--config", task, *quiet],
        *["--model.path", zoo.base, "--output", str(output), "--trainer.max_epochs=1"],
    ])
    main([
        *["fisher", "--config", task, *quiet, "--expert", str(output / "expert")],
        *["--examples=5", "--output", str(output / "fisher.safetensors")],
    ])
    assert (output / "fisher.safetensors").is_file()


def test_merge(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, overrides = AutoModelForSequenceClassification.from_pretrained(zoo.base), []
    for library in LIBRARIES:
        expert = tiny.save(tiny.fine_tuned(base, list(TOPICS[library])), tmp_path / library)
        overrides.append(f"--experts.{library}={expert}")
        overrides += [
            f"--data.tasks.{library}.init_args.{split}=4"
            for split in ("train", "validation", "test")
        ]
    main([
        *["merge", "--config", str(QUICKSTART / "merge.yaml"), *overrides],
        *["--base", zoo.base, "--output", "out", "--method", "Average"],
        "--trainer.enable_progress_bar=false",
    ])
    assert sorted(path.name for path in Path("out/merged").iterdir()) == LIBRARIES
