"""Where an output cannot be made: one line, at once, and nothing is left behind."""

import os

import pytest

from fmerge.errors import UserError
from fmerge.store import check_new_file, check_new_folder, check_place, lock_of, only_run


def dangling(root):
    (root / "link").symlink_to(root / "absent")
    return root / "link", r"link is a link to .*absent, which does not exist; make that"


def below_dangling(root):
    (root / "link").symlink_to("absent")
    return root / "link" / "deep" / "out", "link is a link to absent, which does not exist"


def circle(root):
    (root / "link").symlink_to(root / "link")
    return root / "link" / "out", "link is a link to .*link, which does not exist"


def below_a_file(root):
    (root / "data.csv").write_text("")
    return root / "data.csv" / "runs" / "out", "data.csv is a file, so nothing can be made below"


def long(root):
    return root / "new" / ("x" * 300), "--output .*: is no path .File name too long."


def null(root):
    return root / "a\0b", r"a\\x00b': is no path"


def device(root):
    return "/dev/null/out", "/dev/null is a file, so nothing can be made below it"


@pytest.mark.parametrize(
    "case", [dangling, below_dangling, circle, below_a_file, long, null, device]
)
def test_no_place_for_an_output(tmp_path, case):
    place, message = case(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    place = tmp_path / place
    for check in (check_new_folder, check_new_file):
        with pytest.raises(UserError, match=message) as raised:
            check(place, overwrite=True)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError), only_run(lock_of(place, folder=True)):
        raise AssertionError("it was locked")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
@pytest.mark.parametrize("place", ["/proc/fmerge/out", "/proc/fmerge"])
def test_a_folder_that_the_system_refuses_ends_at_once(tmp_path, place):
    lock = lock_of(tmp_path / place, folder=True)
    with pytest.raises(UserError, match=f"{place}.*: cannot be made .No such file"), only_run(lock):
        raise AssertionError("it was locked")
    with pytest.raises(UserError, match="--checkpoint.dirpath /proc/fmerge.*: nothing can be writ"):
        check_place(tmp_path / place, "--checkpoint.dirpath", writable=True)


def test_links_to_what_exists_and_new_places_are_used(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for place in (tmp_path / "link", tmp_path / "link" / "x" / "y", tmp_path / "new"):
        check_place(place, writable=True)
        with only_run(lock_of(place, folder=True)):
            assert place.is_dir()
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["link", "real"]


def test_an_output_file_that_is_a_link_to_nothing(tmp_path):
    (tmp_path / "f.safetensors").symlink_to(tmp_path / "absent" / "f.safetensors")
    with pytest.raises(UserError, match="f.safetensors is a link to .*absent/f.safetensors, which"):
        check_new_file(tmp_path / "f.safetensors", overwrite=True)
