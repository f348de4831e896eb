"""Image classifiers from a base to a merged model, through the command line."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from fmerge.cli.app import main
from fmerge.store import read_fisher
from tests import oracle, tiny_images
from tests.cli.run import fails
from tests.compare import assert_same

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--data.batch_size=4"]
MODEL = "--model=ImageClassifier"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return tiny_images.make_zoo(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    return tiny_images.make_zoo(tmp_path_factory.mktemp("resnets"), tiny_images.resnet_config)


def data(zoo, *tasks):
    config = {
        "data": {
            "tasks": {
                task: {"class_path": "ImageFiles", "init_args": zoo.tasks[task]}
                for task in tasks or zoo.tasks
            }
        }
    }
    path = zoo.root / f"data{'_'.join(tasks)}.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["--config", str(path), *QUIET]


def experts(zoo):
    return [f"--experts.{task}={path}" for task, path in zoo.experts.items()]


def scored(folder, task, zoo):
    """The accuracy on the test images, by transformers' pipeline, one image at a time."""
    run = pipeline("image-classification", model=str(folder), device="cpu")
    paths = sorted(Path(zoo.tasks[task]["test"]).rglob("*.png"))
    return sum(run(str(path))[0]["label"] == path.parent.name for path in paths) / len(paths)


def check_scores(output, zoo):
    """The scores of a run's merge are those that its saved models have in transformers."""
    rows = json.loads((output / "scores.json").read_text())["rows"]
    merged = rows[-1]["scores"]
    for task in zoo.tasks:
        assert merged[task] == pytest.approx(scored(output / "merged" / task, task, zoo))


def test_from_a_base_to_a_merge(zoo, tmp_path):
    fitted = {}
    for task in zoo.tasks:
        main(["fit", MODEL, f"--model.path={zoo.base}", *data(zoo, task), "--trainer.max_epochs=2",
              "--model.learning_rate=0.01", f"--output={tmp_path / task}"])  # fmt: skip
        fitted[task] = tmp_path / task / "expert"
        main(["fisher", MODEL, *data(zoo, task), f"--expert={fitted[task]}",
              f"--output={tmp_path / task}.safetensors"])  # fmt: skip
    given = [f"--experts.{task}.path={path}" for task, path in fitted.items()]
    files = [f"--experts.{task}.fisher={tmp_path / task}.safetensors" for task in fitted]
    search = ["--optimizer.search=Sobol", "--optimizer.search.trials=3"]
    for method, more in {
        "Average": [], "TIES": search, "FisherMerge": [*files, *search], "DFMerge": search,
        "RegMean": [], "FeatCal": [], "RegMeanPP": [],
    }.items():  # fmt: skip
        output = tmp_path / method
        main(["merge", MODEL, *data(zoo), *given, f"--base={zoo.base}", f"--method={method}",
              f"--output={output}", *more])  # fmt: skip
        check_scores(output, zoo)


def test_an_average_and_its_scores(zoo, tmp_path, capsys):
    """The saved models have the average and the experts' heads; the printed scores are theirs."""
    # the architecture tells the module
    main(["merge", *data(zoo), *experts(zoo), "--method=Average", f"--output={tmp_path / 'out'}"])
    capsys.readouterr()
    states = [load_file(Path(path) / "model.safetensors") for path in zoo.experts.values()]
    check_scores(tmp_path / "out", zoo)
    for k, task in enumerate(zoo.tasks):
        folder = tmp_path / "out" / "merged" / task
        expected = {
            name: sum(one[name] for one in states) / 2 if name.startswith("vit.") else tensor
            for name, tensor in states[k].items()
        }
        assert_same(load_file(folder / "model.safetensors"), expected)
        assert "AutoImageProcessor" in (folder / "README.md").read_text()


def test_a_fisher_file_is_the_definition(residual, tmp_path):
    main(["fisher", MODEL, *data(residual, "colour"), f"--expert={residual.experts['colour']}",
          "--trainer.precision=64-true", "--examples=3", "--split=test",
          f"--output={tmp_path / 'f.safetensors'}"])  # fmt: skip
    found, facts = read_fisher(tmp_path / "f.safetensors")
    folder = residual.experts["colour"]
    model = AutoModelForImageClassification.from_pretrained(folder).double().eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))[:3].tolist()
    paths = sorted(Path(residual.tasks["colour"]["test"]).rglob("*.png"))

    def log_probs(path):
        from PIL import Image

        pixels = processor(images=Image.open(path), return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels.double()).logits.log_softmax(1)

    expected, _ = oracle.fisher(
        model, [paths[i] for i in order], log_probs, lambda values, n: values.exp()
    )
    assert_same(found, expected)
    assert facts["labels"] == tiny_images.LABELS["colour"]


def test_running_statistics_are_those_of_the_merge(residual, tmp_path, capsys):
    """After a merge each batch norm has the statistics of what the merged layers before give it."""
    main(["merge", MODEL, *data(residual), *experts(residual), "--method=Average",
          f"--output={tmp_path / 'out'}"])  # fmt: skip
    capsys.readouterr()
    folders = {task: tmp_path / "out" / "merged" / task for task in residual.tasks}
    models = {
        task: AutoModelForImageClassification.from_pretrained(folder).double()
        for task, folder in folders.items()
    }
    processor = AutoImageProcessor.from_pretrained(folders["colour"])
    from PIL import Image

    name = "resnet.embedder.embedder"
    model = copy.deepcopy(models["colour"]).eval()
    outputs = []
    for task in residual.tasks:
        for path in sorted(Path(residual.tasks[task]["train"]).rglob("*.png")):
            pixels = processor(images=Image.open(path), return_tensors="pt")["pixel_values"]
            outputs.append(model.get_submodule(name).convolution(pixels.double()).detach())
    values = torch.cat(outputs).transpose(0, 1).flatten(1)
    norm = model.get_submodule(name).normalization
    torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, values.var(1, correction=0), rtol=1e-2, atol=0)


def test_a_damaged_image_is_named_by_a_dry_run(zoo, tmp_path, capsys):
    broken = tiny_images.write_folder(tmp_path / "train", tiny_images.LABELS["shade"], 4, seed=0)
    (tmp_path / "train" / "dark" / "02.png").write_bytes(b"\x89PNG")
    arguments = [
        "fisher", MODEL, f"--expert={zoo.experts['shade']}", f"--output={tmp_path / 'f.h5'}",
        "--data.tasks.shade=ImageFiles", f"--data.tasks.shade.init_args.train={broken}", *QUIET,
    ]  # fmt: skip
    for more in (["--dry_run=true"], []):
        assert "dark/02.png: cannot be opened as an image" in fails(capsys, *arguments, *more)
    main([*arguments[:-3], f"--data.tasks.shade.init_args.train={zoo.tasks['shade']['train']}",
          *QUIET, "--dry_run=true"])  # fmt: skip
    assert "9 of 9 in train" in capsys.readouterr().out
