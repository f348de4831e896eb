"""The files beside the package say what they must: citation, licence, bounds, workflow."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

import fmerge

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def releases() -> list[str]:
    """The versions of the changelog, the latest first."""
    return re.findall(r"(?m)^## \[(\d+\.\d+\.\d+)\]", (ROOT / "docs/changelog.md").read_text())


def test_the_changelog_has_the_form_of_keep_a_changelog():
    """Version 1.1.0: an Unreleased section, the latest first, kinds of changes under each."""
    changelog = (ROOT / "docs/changelog.md").read_text()
    sections = re.findall(r"(?m)^## (.+)$", changelog)
    assert sections[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - .+", name) for name in sections[1:])
    versions = [tuple(map(int, name.split("."))) for name in releases()]
    assert versions == sorted(versions, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"(?m)^### (.+)$", changelog)) <= kinds


def test_the_version_is_that_of_the_installed_package(monkeypatch):
    assert fmerge.__version__ == version("fmerge")

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.delitem(vars(fmerge), "__version__", raising=False)
    monkeypatch.setattr(fmerge, "version", missing)
    assert fmerge.__version__ == "0+not.installed"
    monkeypatch.delitem(vars(fmerge), "__version__")


def test_the_citation_has_what_the_format_requires():
    """CFF 1.2.0: these keys, for the work and for each reference; an author has a name."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == releases()[0]
    assert citation["license"] == PROJECT["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
    for work in (citation, *citation["references"]):
        for author in work["authors"]:
            assert "name" in author or "family-names" in author


def test_the_licence_is_packed():
    (name,) = PROJECT["license-files"]
    assert "Apache License" in (ROOT / name).read_text()[:200]


def test_every_lower_bound_is_pinned_by_the_lowest_versions():
    command = [sys.executable, ROOT / ".ci" / "lowest.py", "--torch", "9.8"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pins = dict(line.split("==") for line in printed.splitlines())
    names = {re.match(r"[\w.-]+", line)[0] for line in PROJECT["dependencies"]}
    assert names <= set(pins) and {"h5py", "hypothesis", "pytest"} <= set(pins)
    assert pins["torch"] == "9.8"
    assert f"scipy>={pins['scipy']}" in PROJECT["dependencies"]


def test_every_dependency_has_the_reason_of_its_bound():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    block = lines[start + 1 : lines.index("]", start)]
    for above, line in zip(["", *block], block, strict=False):
        if line.strip().startswith('"'):
            assert above.strip().startswith("#"), f"{line.strip()} has no reason above it"


def test_workflow_and_hooks_run_what_there_is():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    makefile = (ROOT / "Makefile").read_text()
    pythons = jobs["tested"]["strategy"]["matrix"]["python"]
    supported = [line for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert pythons == [line.rpartition(" ")[2] for line in supported]
    for job in jobs.values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            elif step["run"].startswith("make "):
                assert f"\n{step['run'].removeprefix('make ')}: " in makefile
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format", "mypy"]
