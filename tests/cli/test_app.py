"""The command line's choice of a module, where none is named."""

import pytest

from fmerge.cli.app import FMergeCLI, main
from tests import tiny
from tests.cli.run import experts
from tests.store.test_module_kinds import MODELS


@pytest.fixture
def chosen(monkeypatch):
    """Runs a command up to the Trainer; returns the class of the module that it was given."""
    seen = []

    monkeypatch.setattr(
        FMergeCLI, "_run_subcommand", lambda self, _: seen.append(type(self.model).__name__)
    )

    def run(*args):
        main([str(arg) for arg in (*args, "--trainer.accelerator", "cpu")])
        return seen.pop()

    return run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    kinds = ("t5", "gpt2", "spans", "words")
    return {name: tiny.save(MODELS[name](), root / name) for name in kinds}


def test_a_merge_takes_the_kind_of_its_experts(chosen, saved, tmp_path):
    given = ("--experts.a", saved["t5"], "--experts.b", saved["t5"], "--output", tmp_path / "out")
    assert chosen("merge", *given, "--model.max_length", 7) == "RankChoice"
    assert chosen("merge", *given, "--model", "TextClassifier") == "TextClassifier"
    (tmp_path / "mine.yaml").write_text(
        f"experts: {{a: {{path: {saved['spans']}}}, b: {{path: {saved['spans']}}}}}\n"
    )
    read = ("--config", tmp_path / "mine.yaml", "--output", tmp_path / "out")
    assert chosen("merge", *read) == "SpanAnswers"


@pytest.mark.slow
def test_every_command_takes_the_kind_of_its_model(chosen, saved, zoo, tmp_path):
    def given(name):
        path = saved[name]
        return ("--experts.a", path, "--experts.b", path, "--output", tmp_path / "out")

    assert chosen("merge", *given("gpt2")) == "RankChoice"
    assert chosen("merge", *given("words")) == "TextClassifier"
    assert chosen("merge", *experts(zoo), "--output", tmp_path / "out") == "TextClassifier"
    (tmp_path / "mine.yaml").write_text("model: {class_path: TextClassifier}\n")
    assert chosen("merge", "--config", tmp_path / "mine.yaml", *given("t5")) == "TextClassifier"
    file = ("--output", tmp_path / "f.safetensors")
    assert chosen("fisher", "--expert", saved["gpt2"], *file) == "RankChoice"
    assert chosen("fisher", "--expert", zoo.experts["colour"], *file) == "TextClassifier"
    assert chosen("validate", "--model.path", saved["t5"]) == "RankChoice"
    assert chosen("test", "--model.path", saved["spans"]) == "SpanAnswers"
    # a fit may give a language model the head of a classifier
    assert chosen("fit", "--model.path", saved["gpt2"]) == "TextClassifier"
