"""The version stands in several files; a release compares them."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".github" / "release.py"
PROJECT = '[project]\nname = "hf-farms"\nversion = "0.2.0"\n'
CITATION = "cff-version: 1.2.0\nversion: 0.2.0\n"
CHANGELOG = """\
# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-05

### Added

- Something.

## [0.1.0] - 2026-12-01

- The first.
"""

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the source tree")


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "CITATION.cff").write_text(CITATION)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def numbers(version):
    return tuple(int(number) for number in version.split("."))


def test_the_notes_are_those_of_the_version(release, project):
    assert release.release_notes("v0.2.0", project) == "### Added\n\n- Something."


@pytest.mark.parametrize("tag", ["0.2.0", "v0.1.0", "v0.2.0rc1", ""])
def test_another_tag_is_refused(release, project, tag):
    with pytest.raises(ValueError, match=f"tag must be v0.2.0, .* got '{tag}'"):
        release.release_notes(tag, project)


def test_another_version_is_not_cited(release, project):
    replace(project / "CITATION.cff", "version: 0.2.0", "version: 0.1.0")
    with pytest.raises(ValueError, match=r"CITATION.cff must have version 0.2.0, got \['0.1.0'\]"):
        release.release_notes("v0.2.0", project)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("## [Unreleased]\n", "## [Unreleased]\n\n- More.\n", "must begin with an empty Unreleased section"),
        ("## [Unreleased]\n", "", "must begin with an empty Unreleased section"),
        ("[0.2.0] - 2027-01-05", "[0.2.0]", "got '0.2.0' of None"),
        ("### Added\n\n- Something.\n", "", "with notes"),
        ("[0.2.0]", "[0.3.0]", "got '0.3.0'"),
        ("## [0.2.0] - 2027-01-05\n\n### Added\n\n- Something.\n", "", "got '0.1.0'"),
    ],
)
def test_a_changelog_that_does_not_fit_is_refused(release, project, old, new, message):
    replace(project / "CHANGELOG.md", old, new)
    with pytest.raises(ValueError, match=message):
        release.release_notes("v0.2.0", project)


def test_the_command_ends_with_the_message():
    done = subprocess.run([sys.executable, SCRIPT, "v0.0.0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: tag must be v")


def test_versions_of_this_project_agree(release):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    top, *released = release.sections((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert top[0] == "Unreleased"
    assert all(date for _, date, _ in released)
    newest_first = [numbers(name) for name, _, _ in released]
    assert newest_first == sorted(newest_first, reverse=True)
    # Before a release the version is ahead of the changelog.
    assert not released or numbers(version) >= newest_first[0]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_the_citation_names_the_papers_of_the_cards():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    papers = {reference["identifiers"][0]["value"] for reference in references}
    folder = ROOT / "model_cards" / "hf_farms_cards" / "templates"
    templates = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.j2"))
    assert {f"arXiv:{number}" for number in re.findall(r"arXiv:(\d{4}\.\d{5})\}", templates)} <= papers
