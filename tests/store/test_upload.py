"""Uploads to a stand-in of the hub: all of a folder in one commit, or one line and nothing lost."""

import time
from pathlib import Path

import pytest

from fmerge.errors import UserError
from fmerge.store.hub import bound_retries, check_on_hub
from fmerge.store.side_files import hub_folder
from fmerge.store.upload import check_push, push
from tests.store.hub_stand_in import Hub

# huggingface_hub 2.4 sends large files by an argument that its HTTP library renamed
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CREATE, PREUPLOAD, BATCH, COMMIT = (
    *("POST /api/repos/create", "POST /api/models/a/b/preupload/main"),
    *("POST /a/b.git/info/lfs/objects/batch", "POST /api/models/a/b/commit/main"),
)


@pytest.fixture
def hub(monkeypatch):
    one = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", one.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a protocol apart
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield one
    one.shutdown()
    one.server_close()


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "my merge"
    for name, content in (
        ("README.md", b"---\ntags: [merge]\n---\n# both\n"), ("x/config.json", b"{}"),
        ("x/model.safetensors", bytes(range(256)) * 9),
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def content(folder: Path):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("private", [False, True])
def test_all_files_arrive_in_one_commit(hub, saved, private):
    assert push(saved, "a/b", private) == f"{hub.url}/a/b"
    assert hub.files == content(saved) and hub.commits == 1 and hub.private is private
    assert hub.tokens == {"Bearer hf_secret"}


def test_a_repository_that_is_there_is_written_to(hub, saved):
    hub.private = False
    push(saved, "a/b")
    assert hub.files == content(saved)


@pytest.mark.parametrize("what", [CREATE, PREUPLOAD, BATCH, COMMIT, "PUT /store"])
def test_a_dropped_connection_is_tried_again(hub, saved, monkeypatch, what):
    if what == "PUT /store":
        import hashlib

        what += f"/{hashlib.sha256((saved / 'x/model.safetensors').read_bytes()).hexdigest()}"
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.drops[what] = 1
    push(saved, "a/b")
    assert hub.files == content(saved) and hub.commits == 1 and hub.drops[what] == 0
    assert hub.asked.count(what) == 2


@pytest.mark.parametrize("what", [CREATE, COMMIT])
@pytest.mark.parametrize("status", [401, 403, 409])
def test_a_hub_that_refuses(hub, saved, what, status):
    hub.refuses[what] = status
    if what == CREATE:  # an existing repository is 409 as well, and then written to
        hub.refuses["GET /api/models/a/b"] = 404
        hub.refuses[COMMIT] = status
    before = content(saved)
    with pytest.raises(UserError) as refused:
        push(saved, "a/b", private=False)
    line = str(refused.value)
    assert line.startswith("--push_to_hub a/b: the hub refuses it (4") and "\n" not in line
    assert line.endswith(f"the merge is saved; upload it later with: hf upload a/b '{saved}' .")
    assert content(saved) == before and hub.files == {} and hub.commits == 0


def test_nothing_private_is_put_into_a_public_repository(hub, saved):
    hub.private = False
    with pytest.raises(UserError, match=r"a/b: it is public, but must be private.* \. --private$"):
        push(saved, "a/b", private=True)
    assert hub.files == {}


def test_a_hub_that_cannot_be_reached_is_given_up_soon(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(UserError, match="a/b: the hub cannot be reached .* upload it later"):
        push(saved, "a/b")
    assert time.monotonic() - begun < 5


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub that refuses connections, asked by a client that waits on a clock of the test."""
    now = [1000.0]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    bound_retries.cache_clear()
    bound_retries()
    yield now
    bound_retries.cache_clear()


def test_downloads_from_it_are_given_up_soon(unreachable):
    from huggingface_hub import errors, hf_hub_download

    for name in ("config.json", "generation_config.json"):
        with pytest.raises(errors.LocalEntryNotFoundError):
            hf_hub_download("a/b", name)
    assert 2.5 <= unreachable[0] - 1000 <= 5  # of both together; the library takes 23 for each
    with pytest.raises(UserError, match="a/b: no such folder, and the hub cannot be asked"):
        check_on_hub("a/b")


def test_what_was_downloaded_before_is_still_read(unreachable, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert hub_folder("a/b") == snapshot
    assert unreachable[0] - 1000 <= 5


@pytest.mark.parametrize("name", ["b", "a/b/c", "a/b c", "/a", "a/", "../b", ""])
def test_no_repository(name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UserError, match="is no repository of the hub; give owner/name"):
        check_push(name, private=False)


def test_what_is_missing_is_said_before_the_merge(monkeypatch):
    check_push(None, private=False)
    with pytest.raises(UserError, match="--push_private true: there is no --push_to_hub"):
        check_push(None, private=True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"a/b: there is no access token; set HF_TOKEN"):
        check_push("a/b", private=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    check_push("a/b", private=False)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(UserError, match="a/b: HF_HUB_OFFLINE is set"):
        check_push("a/b", private=False)
