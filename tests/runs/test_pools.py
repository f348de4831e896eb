"""What cannot be made in parallel is refused before models are read."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator

from fmerge.errors import UserError
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.runs import pools
from fmerge.runs.pools import check_parallel


def check(processes=1, accelerator=CPUAccelerator, **options):
    trainer = SimpleNamespace(world_size=processes, accelerator=object.__new__(accelerator))
    check_parallel(MergeOptimizer(**options), trainer)


def test_what_does_not_fit_is_refused(monkeypatch):
    asked = []
    monkeypatch.setattr(pools, "check_ray", asked.append)
    for message, options in (
        ("ray_address: is of trials side by side; give --optimizer.parallel", {"ray_address": "a"}),
        ("one device, but the Trainer has 2; add --trainer.devices 1", {"processes": 2}),
        ("for CPUs and GPUs, but the Trainer has MPS", {"accelerator": MPSAccelerator}),
    ):
        if "ray_address" not in options:
            options["parallel"] = 2
        with pytest.raises(UserError, match=message):
            check(**options)
    check(processes=2)
    assert asked == []
    check(parallel=2)
    check(parallel=1, ray_address="auto")
    assert asked == [None, "auto"]
