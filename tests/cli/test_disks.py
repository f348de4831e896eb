"""A disk that fills up and a folder that becomes read-only: one line, and the command goes on."""

import ctypes
import os
import subprocess

import pytest

from fmerge.store import RunFolder
from tests.cli.run import data_config, fails
from tests.cli.test_interrupts import in_child, merge, run, trials
from tests.cli.test_kills import assert_same_fisher, assert_same_folder


@pytest.fixture
def disk(tmp_path):
    """A disk of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk, but):
    """Leaves so many bytes free."""
    state = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(state.f_bavail * state.f_frsize - but))


def test_a_fisher_on_a_full_disk_goes_on_when_there_is_room(zoo, tmp_path, disk, capsys):
    def fisher(output):
        config = ["--config", data_config(zoo, tmp_path, "colour"), "--save_every", "0"]
        return ["fisher", *config, "--expert", zoo.experts["colour"], "--output", output]

    whole, output = tmp_path / "whole.safetensors", disk / "out.safetensors"
    run(*fisher(whole))
    # room for the lock and for one saving, but not for the second, which is written beside it
    fill(disk, int(1.5 * whole.stat().st_size) + 4096)
    line = fails(capsys, *fisher(output))
    assert "cannot be written, as the disk is full; free space on " in line and str(disk) in line
    left = sorted(one.name for one in disk.iterdir())
    assert left == ["ballast", "out.unfinished-0-of-1.safetensors"]
    (disk / "ballast").unlink()
    run(*fisher(output))
    assert_same_fisher(output, whole)
    assert [one.name for one in disk.iterdir()] == ["out.safetensors"]


@pytest.mark.slow
def test_a_merge_on_a_full_disk_goes_on_when_there_is_room(zoo, tmp_path, disk, capsys):
    whole, output = tmp_path / "whole", disk / "out"
    run(*merge(zoo, tmp_path, whole))
    fill(disk, 80_000)  # room for the trials, not for two merged models
    line = fails(capsys, *merge(zoo, tmp_path, output))
    assert "cannot be written, as the disk is full; free space on " in line and str(disk) in line
    assert trials(output) == trials(whole)
    assert not (output / "merged").exists() and not list(output.glob(".*"))
    # no room at all: nothing is lost by trying
    (disk / "ballast").unlink()
    fill(disk, 0)
    assert "the disk is full" in fails(capsys, *merge(zoo, tmp_path, output))
    assert trials(output) == trials(whole)
    (disk / "ballast").unlink()
    run(*merge(zoo, tmp_path, output))
    assert_same_folder(output, whole)


def obey_permissions():
    """Takes root's right to write where the permissions forbid it."""
    if os.geteuid() == 0:
        library = ctypes.CDLL(None, use_errno=True)
        header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        library.capget(header, rights)
        rights[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        library.capset(header, rights)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_keeps_what_it_has(zoo, tmp_path, capfd):
    whole, output = tmp_path / "whole", tmp_path / "out"
    run(*merge(zoo, tmp_path, whole))
    arguments = merge(zoo, tmp_path, output)

    def close():
        obey_permissions()
        if os.access(output, os.W_OK, effective_ids=True):
            output.chmod(0o500)

    capfd.readouterr()
    code = in_child(arguments, RunFolder, "append", 2, close)
    output.chmod(0o700)
    said = capfd.readouterr().err
    if code == 0:
        pytest.skip("permissions do not bind this user")
    assert code == 2 and "Traceback" not in said
    (line,) = said.strip().splitlines()
    assert "merged: cannot be written (Permission denied); name an --output" in line
    assert trials(output) == trials(whole)
    run(*arguments)
    (output / ".fmerge.lock").unlink(missing_ok=True)
    assert_same_folder(output, whole)
