"""Hundreds of trials in one process take no more memory and no more files than a few."""

import gc
import os
from pathlib import Path

import pytest
import torch

from fmerge.cli.app import main
from fmerge.store import RunFolder
from tests.cli.run import data_config, experts

TRIALS, COUNTED = 200, 150
BOUND = 16  # KiB a trial: a body of this zoo is 25, so that one kept in each would show


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def handles():
    return len(os.listdir("/proc/self/fd"))


def slope(values):
    """Of a line by least squares."""
    x = torch.arange(len(values), dtype=torch.float64)
    y = torch.tensor(values, dtype=torch.float64)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Isotropic", "DFMerge"])
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
def test_memory_and_files_stay_flat(zoo, tmp_path, monkeypatch, record_property, method):
    sizes, objects, append = [], [], RunFolder.append

    def counting(self, record):
        append(self, record)
        sizes.append(resident())
        if len(sizes) in {TRIALS - COUNTED, TRIALS}:
            gc.collect()
            objects.append((len(gc.get_objects()), handles()))

    def merge(folder, draws):
        search = ["--optimizer.search", "Dirichlet", "--optimizer.search.draws", draws]
        arguments = [
            *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
            *["--output", tmp_path / folder, "--method", method, "--baselines", "experts"],
            *[*search, "--data.batch_size", "16"],
        ]
        main([str(one) for one in arguments])

    merge("first", 2)  # libraries open files at their first use
    monkeypatch.setattr(RunFolder, "append", counting)
    before = handles()
    merge("out", TRIALS)
    after = handles()
    (few, open_early), (many, open_late) = objects
    grown = slope(sizes[-COUNTED:])
    record_property(
        "figure",
        f"{method}, {TRIALS} trials: {grown:.2f} KiB a trial over the last {COUNTED}, "
        f"{(many - few) / COUNTED:.1f} objects a trial; open files {open_early} then {open_late}, "
        f"{before} before and {after} after",
    )
    assert len(sizes) == TRIALS + 1  # the plain average
    assert grown < BOUND
    assert (many - few) / COUNTED < 60
    assert open_late == open_early and after <= before
