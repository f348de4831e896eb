"""One answer to how much memory is free, from files that stand for the system's."""

import pytest
import torch

from fmerge.system import memory
from fmerge.system.memory import Memory, free_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 1,000 KiB of memory, 800 of them free; returns a writer of its files."""

    def write(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    write({
        "meminfo": "MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:   800 kB\nHugePages:  0\n"
    })
    return write


def group(folder, limit, used, files):
    """The files of a control group of version 2."""
    return {
        f"groups/{folder}memory.max": f"{limit}\n",
        f"groups/{folder}memory.current": f"{used}\n",
        f"groups/{folder}memory.stat": f"anon 7\ninactive_file {files}\nactive_file 9\n",
    }


def test_without_control_groups_the_machine_says_what_is_available(machine):
    assert free_memory(CPU) == Memory(free=800 * 1024, total=1000 * 1024)
    assert free_memory(torch.device("mps")) == free_memory(CPU)


def test_the_file_pages_of_a_control_group_count_as_free(machine):
    machine({"own": "0::/\n"} | group("", 1000, 900, 200))
    assert free_memory(CPU) == (300, 1000)


def test_a_group_without_a_limit_or_with_more_than_the_machine_is_no_bound(machine):
    machine(group("", "max", 900, 200))
    assert free_memory(CPU) == (800 * 1024, 1000 * 1024)
    machine(group("", 2**40, 900, 200))
    assert free_memory(CPU) == (800 * 1024, 1000 * 1024)


def test_the_tightest_group_above_a_process_bounds_it(machine):
    machine({"own": "0::/batch/job_7/step_0\n"})
    machine(group("batch/job_7/", 5000, 4000, 100) | group("batch/job_7/step_0/", "max", 1, 0))
    assert free_memory(CPU) == (1100, 5000)
    machine(group("batch/", 6000, 5500, 0))
    assert free_memory(CPU) == (500, 6000)


def test_a_container_that_cannot_see_its_path_has_the_limit_of_the_root(machine):
    machine({"own": "0::/docker/abc\n"} | group("", 1000, 400, 0))
    assert free_memory(CPU) == (600, 1000)


def test_control_groups_of_version_1(machine):
    machine({
        "own": "5:cpu,cpuacct:/a\n4:memory:/a\n",
        "groups/memory/a/memory.limit_in_bytes": "3000\n",
        "groups/memory/a/memory.usage_in_bytes": "2500\n",
        "groups/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 40\n",
        "groups/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "groups/memory/memory.usage_in_bytes": "2500\n",
        "groups/memory/memory.stat": "total_inactive_file 40\n",
    })
    assert free_memory(CPU) == (540, 3000)


def test_elsewhere_the_free_pages_count_or_nothing_is_known(machine, monkeypatch):
    machine({"meminfo": "no such lines: 1\n"})
    pages = {"SC_PAGE_SIZE": 10, "SC_AVPHYS_PAGES": 3, "SC_PHYS_PAGES": 8}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    assert free_memory(CPU) == (30, 80)

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(memory.os, "sysconf", unknown)
    assert free_memory(CPU) is None


def test_what_pytorch_reserves_and_does_not_use_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 600)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 250)
    assert free_memory(GPU) == Memory(free=450, total=1000)


def test_this_machine_has_memory():
    free, total = free_memory(CPU)
    assert 0 < free <= total and total > 2**28
