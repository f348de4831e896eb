"""Fisher files come back whole with their provenance; anything else is refused."""

import h5py
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fmerge.errors import UserError
from fmerge.store import (
    check_fisher_path,
    read_fisher,
    write_fisher,
)
from tests.compare import assert_same

VALUES = {"bert.w": torch.tensor([[0.5, 0.0], [1e-30, 3.0]]), "classifier.b": torch.ones(3)}
PROVENANCE = {"model": "runs/x", "model_sha256": "ab", "examples": 13, "estimator": "exact"}


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
