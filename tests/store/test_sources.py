"""Where models are: a folder of several names those inside it."""

import pytest

from fmerge.errors import UserError
from fmerge.store import load_classifier, load_language_model
from tests import tiny


def test_a_folder_of_merged_tasks_names_the_folders_inside(tmp_path):
    model = tiny.classifier(tiny.bert_config())
    for name in ("b", "a"):
        tiny.save(model, tmp_path / "merged" / name)
    with pytest.raises(UserError) as refused:
        load_classifier(str(tmp_path / "merged"), "a")
    assert str(refused.value) == (
        f"{tmp_path}/merged: holds no config.json, so it is no Hugging Face folder, but it holds "
        f"models inside: give {tmp_path}/merged/a or {tmp_path}/merged/b"
    )
    # the folder of the whole run
    with pytest.raises(UserError, match=f"give {tmp_path}/merged/a or {tmp_path}/merged/b$"):
        load_classifier(str(tmp_path), "a")


def test_a_run_of_one_model_names_it(tmp_path):
    tiny.save(tiny.language_model(tiny.t5_config()), tmp_path / "expert")
    with pytest.raises(UserError, match=f"holds a model inside: give {tmp_path}/expert$"):
        load_language_model(str(tmp_path))


def test_many_models_are_counted(tmp_path):
    for i in range(7):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"or {tmp_path}/4 and 2 more$"):
        load_classifier(str(tmp_path), "a")


def test_a_folder_without_models_names_none(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="so it is no Hugging Face folder$"):
        load_classifier(str(tmp_path), "a")
