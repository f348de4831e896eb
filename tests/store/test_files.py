"""Whole or absent: files, folders, Fishers."""

import h5py
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fmerge.errors import UserError
from fmerge.store import (
    check_fisher_path,
    check_new_file,
    check_new_folder,
    read_fisher,
    replacing_file,
    write_fisher,
    write_text,
)
from fmerge.store.atomic import append_line, replacing_folder
from tests.compare import assert_same

VALUES = {"bert.w": torch.tensor([[0.5, 0.0], [1e-30, 3.0]]), "classifier.b": torch.ones(3)}
PROVENANCE = {"model": "runs/x", "model_sha256": "ab", "examples": 13, "estimator": "exact"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file.txt"]
    write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "folder"
    with replacing_folder(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(path) as temporary:
        (temporary / "b").write_text("half")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["a"] and list(tmp_path.iterdir()) == [path]
    with replacing_folder(path) as temporary:
        (temporary / "c").write_text("new")
    assert [p.name for p in path.iterdir()] == ["c"] and path.stat().st_mode & 0o777 == 0o755


def test_lines_are_added(tmp_path):
    for line in ("one", "two"):
        append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_outputs_that_exist_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty", overwrite=False)
    check_new_folder(tmp_path / "absent", overwrite=False)
    check_new_folder(tmp_path / "full", overwrite=True)
    with pytest.raises(UserError, match="full: the folder is not empty; .* --overwrite"):
        check_new_folder(tmp_path / "full", overwrite=False)
    with pytest.raises(UserError, match="is a file"):
        check_new_folder(tmp_path / "full" / "x", overwrite=True)
    check_new_file(tmp_path / "full" / "x", overwrite=True)
    with pytest.raises(UserError, match="exists already"):
        check_new_file(tmp_path / "full" / "x", overwrite=False)
    with pytest.raises(UserError, match="is a folder"):
        check_new_file(tmp_path / "full", overwrite=True)


@pytest.mark.parametrize("ending", ["safetensors", "h5"])
def test_fishers_come_back_with_their_provenance(tmp_path, ending):
    path = tmp_path / f"fisher.{ending}"
    check_fisher_path(path)
    write_fisher(path, VALUES, PROVENANCE)
    values, provenance = read_fisher(path)
    assert provenance == PROVENANCE
    assert_same(values, VALUES, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [path]
    if ending == "h5":
        with h5py.File(path) as file:
            assert sorted(file) == sorted(VALUES)
    else:
        with safe_open(path, "pt") as file:
            assert "exact" in file.metadata()["fmerge.fisher"]


def test_what_is_no_fisher_is_refused(tmp_path):
    with pytest.raises(UserError, match="must end in .safetensors or .h5"):
        check_fisher_path(tmp_path / "fisher.pt")
    with pytest.raises(UserError, match="no such Fisher file"):
        read_fisher(tmp_path / "absent.safetensors")
    for ending in ("safetensors", "h5"):
        broken = tmp_path / f"broken.{ending}"
        broken.write_bytes(b"\xff" * 100)
        with pytest.raises(UserError, match=f"broken.{ending}: not a readable"):
            read_fisher(broken)
    save_file(VALUES, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="not written by 'fmerge fisher'"):
        read_fisher(tmp_path / "weights.safetensors")
    for bad, message in ((torch.nan, "holds 1 NaN"), (-1.0, "negative")):
        path = tmp_path / "bad.safetensors"
        write_fisher(path, {"w": torch.tensor([1.0, bad])}, PROVENANCE)
        with pytest.raises(UserError, match=f"'w'.*{message}"):
            read_fisher(path)
