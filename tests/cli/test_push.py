"""``--push_to_hub``: what a merge saved is in the repository, or a line says how it gets there."""

import pytest
import yaml

from fmerge.cli.app import main
from tests.cli.run import experts, fails
from tests.store.hub_stand_in import Hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.slow
def test_a_merge_is_uploaded_or_kept(zoo, tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    command = ["merge", *experts(zoo), "--push_to_hub=me/both", "--push_private=true"]
    with monkeypatch.context() as without:
        without.setattr("huggingface_hub.get_token", lambda: None)
        missing = fails(capsys, *command, f"--output={tmp_path / 'refused'}")
    assert "there is no access token" in missing and not (tmp_path / "refused").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    main([*command, f"--output={tmp_path / 'out'}"])
    merged = tmp_path / "out" / "merged"
    files = {str(p.relative_to(merged)): p.read_bytes() for p in merged.rglob("*") if p.is_file()}
    assert hub.files == files and hub.private is True and hub.commits == 1
    cards = {name: text.decode() for name, text in files.items() if name.endswith("README.md")}
    assert cards.keys() == {"README.md", *(f"{task}/README.md" for task in zoo.tasks)}
    for text in cards.values():
        assert str(tmp_path) not in text and str(zoo.base) not in text
        assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"
    told = capsys.readouterr()
    assert f"uploaded: {hub.url}/me/both" in told.out + told.err

    hub.refuses["POST /api/models/me/both/commit/main"] = 403
    line = fails(capsys, *command, f"--output={tmp_path / 'again'}")
    assert "the hub refuses it (403: " in line and "hf upload me/both " in line
    again = tmp_path / "again" / "merged"
    assert (tmp_path / "again" / "report.md").is_file()
    assert {name: (again / name).read_bytes() for name in files} == files
    hub.shutdown()
    hub.server_close()
