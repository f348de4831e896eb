"""What docs/own_modules.md tells to write works as it is written, in a folder of its own."""

import importlib
import re
import runpy
import sys

import pytest
import torch
from safetensors.torch import load_file

from fmerge.cli.app import main
from fmerge.data import Digits
from tests.compare import assert_same
from tests.docs.pages import ROOT, commands, files, process

PAGE = (ROOT / "docs" / "own_modules.md").read_text()
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture
def folder(tmp_path):
    for name, text in files(PAGE).items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def page(folder, monkeypatch):
    """Imports a module of the page."""
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name in files(PAGE):
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_page_has_these_files():
    code = ["digits_net.py", "train.py", "digits.yaml", "use.py", "inverted.yaml"]
    assert list(files(PAGE)) == [
        *[*code, "lit_digits.py", "lit_train.py"],
        *["timm_module.py", "clip_module.py"],  # tried by hand
    ]


def test_its_classes_read_what_its_scripts_save(page, folder):
    net = page("digits_net").Net(10, 64)
    torch.save(net.state_dict(), folder / "x.pt")
    lit = page("lit_digits")
    made = lit.LitDigits()
    torch.save({"state_dict": made.state_dict()}, folder / "x.ckpt")
    module = lit.LitModule()
    assert_same(module.read(str(folder / "x.pt"), "").state_dict(), net.state_dict())
    assert_same(module.read(str(folder / "x.ckpt"), "").state_dict(), made.net.state_dict())
    assert list(module.body(net)) == [f"body.{i}.{one}" for i in "02" for one in ("weight", "bias")]

    examples = Digits("inverted").examples("test")[:3]
    batch = module.collate(examples, "a")
    grey = [torch.tensor(list(one["image"].tobytes())) / 255 for one in examples]
    torch.testing.assert_close(batch["inputs"], torch.stack(grey))
    module.adopt({"a": net}, ())
    torch.testing.assert_close(module.label_log_probs(batch), net(torch.stack(grey)).log_softmax(1))


def test_its_files_have_the_style_of_the_house(folder):
    ruff = pytest.importorskip("ruff", reason="ruff is not installed")
    settings = (ROOT / "pyproject.toml").read_text()
    own = '[tool.ruff.lint]\nisort.known-first-party = ["fmerge"]'
    (folder / "pyproject.toml").write_text(settings.replace("[tool.ruff.lint]", own))
    names = [name for name in files(PAGE) if name.endswith(".py")]
    process("-m", ruff.__name__, "check", "--no-cache", *names, folder=folder)
    process("-m", ruff.__name__, "format", "--no-cache", "--check", ".", folder=folder)


@pytest.mark.slow
def test_its_commands_run_in_order(page, folder, monkeypatch, capsys):
    """Every file and command of the page; the merges are computed once more by hand."""
    monkeypatch.chdir(folder)
    for program, *arguments in commands(PAGE):
        if program == "python":
            runpy.run_path(*arguments, run_name="__main__")
        else:
            assert program == "fmerge"
            main([*arguments, *QUIET])
    assert re.search(r"^\d$", capsys.readouterr().out, flags=re.MULTILINE)  # of use.py

    states = [torch.load(folder / f"{one}.ckpt")["state_dict"] for one in ("rotated", "shifted")]
    for task, own in zip(("rotated", "shifted"), states, strict=True):
        merged = load_file(folder / "lit_averaged/merged" / task / "model.safetensors")
        for name, one in merged.items():
            average = (states[0][f"net.{name}"] + states[1][f"net.{name}"]) / 2
            expected = own[f"net.{name}"] if name.startswith("head.") else average
            torch.testing.assert_close(one, expected)
    base, first, second = (
        torch.load(folder / f"{one}.pt")["body.0.weight"].flatten()
        for one in ("base", "rotated", "shifted")
    )
    merged = load_file(folder / "arithmetic/merged/rotated/model.safetensors")
    change = merged["body.0.weight"].flatten() - base
    steps = torch.stack([first - base, second - base], dim=1)
    # in the span of the two task vectors
    fitted = torch.linalg.lstsq(steps, change[:, None]).solution
    torch.testing.assert_close((steps @ fitted).flatten(), change, rtol=1e-3, atol=1e-6)
    assert (folder / "ties/merged/inverted/model.safetensors").is_file()
