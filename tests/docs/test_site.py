"""The documentation as a site: every page is in its navigation, and every link leads somewhere."""

import importlib.util
import re
from types import SimpleNamespace

import pytest
import yaml

from tests.docs.pages import ROOT, page

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def listed(entries) -> list[str]:
    """The pages of a navigation, in its order."""
    found = []
    for entry in entries:
        (value,) = entry.values()
        found += [value] if isinstance(value, str) else listed(value)
    return found


def anchors(text: str) -> set[str]:
    """The identifiers of a page's headings, as GitHub and mkdocs make them of plain words."""
    titles = re.findall(r"(?m)^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    words = (re.sub(r"[^\w\s-]", "", title.lower()) for title in titles)
    return {re.sub(r"\s+", "-", word.strip()) for word in words}


def test_every_page_is_in_the_navigation():
    settings = yaml.safe_load((DOCS / "mkdocs.yml").read_text())
    assert sorted(listed(settings["nav"])) == PAGES
    assert settings["strict"] is True


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in _LINK.findall(_CODE.sub("", page(f"docs/{name}"))):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = DOCS / target if target else DOCS / name
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text()), link


def test_links_out_of_the_site_become_names():
    spec = importlib.util.spec_from_file_location("site_links", ROOT / ".ci" / "site_links.py")
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    here = SimpleNamespace(file=SimpleNamespace(src_path="here.md"))

    def shown(text):
        return hook.on_page_markdown(text, here)

    assert shown("[its README](../fmerge/fisher/README.md#top)") == (
        "its README (`fmerge/fisher/README.md`)"
    )
    assert shown("[configs/lora](../configs/lora)") == "`configs/lora`"
    assert shown("[limits](limits.md#buffers)") == "[limits](limits.md#buffers)"
    with pytest.raises(ValueError, match=r"here.md: links to ../no/file, but there is no such"):
        shown("[gone](../no/file)")
