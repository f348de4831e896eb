"""A name that is no folder: a mistyped path, a model of the hub, or neither."""

import huggingface_hub
import pytest
from huggingface_hub import HfApi, errors

from fmerge.errors import UserError
from fmerge.store import load_classifier, load_tokenizer
from fmerge.store.hub import check_on_hub, hub_trouble, is_hub_id


@pytest.mark.parametrize("name", ["roberta-base", "FacebookAI/roberta-base", "a_b.c"])
def test_hub_ids(name):
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["my model", "a//b", "a/../b", "C:\\x", "modèle", "a/b/c"])
def test_paths(name):
    assert not is_hub_id(name)
    for read in (lambda one: load_classifier(one, "x"), load_tokenizer):
        with pytest.raises(UserError) as refused:
            read(name)
        assert str(refused.value) == f"{name}: no such file or folder"


@pytest.mark.parametrize("name", ["wrong", "experts/colour"])
def test_a_mistyped_path_is_no_long_story_about_the_hub(name):
    for read in (lambda one: load_classifier(one, "x"), load_tokenizer):
        with pytest.raises(UserError) as refused:
            read(name)
        line = str(refused.value)
        assert line.startswith(f"{name}: no such folder, and the hub cannot be asked")
        assert "check the path" in line and len(line) < 160 and "\n" not in line


def raising(error):
    def ask(self, name, timeout):
        raise error

    return ask


class Answer:
    headers, request, status_code = {}, None, 404


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.RepositoryNotFoundError("404", response=Answer()), "and no such model on the hub"),
        (errors.OfflineModeIsEnabled("off"), r"cannot be asked .* \(OfflineModeIsEnabled\)"),
        (errors.GatedRepoError("403", response=Answer()), None),
        (errors.HfHubHTTPError("500", response=Answer()), None),  # the files may still be there
    ],
)
def test_the_hub_is_asked_once(monkeypatch, error, says):
    monkeypatch.setattr(HfApi, "model_info", raising(error))
    if says is None:
        return check_on_hub("a/b")
    with pytest.raises(UserError, match=f"a/b: no such folder, .*{says}"):
        check_on_hub("a/b")


def test_what_is_in_the_cache_needs_no_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "config.json")
    check_on_hub("a/b")


def test_what_the_hub_may_lack():
    gated = OSError("a long story")
    gated.__cause__ = errors.GatedRepoError("403", response=Answer())
    assert "the hub's model is gated; ask for access" in hub_trouble("a/b", "config", gated)
    lacking = OSError("a long story")
    lacking.__cause__ = errors.RemoteEntryNotFoundError("404", response=Answer())
    assert "has no config: it may be an adapter" in hub_trouble("a/b", "config", lacking)
    other = ValueError("odd " * 100)
    assert len(hub_trouble("a/b", "config", other)) < 200
