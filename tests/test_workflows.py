"""Workflows of GitHub: pinned actions, least permissions, and commands that run on any machine."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
USES = re.compile(r"^\s*(?:- )?uses: (?P<action>\S+)(?: # (?P<version>\S+))?$", re.MULTILINE)
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
MAKE = re.compile(r"^make (?:-s )?(?P<target>[\w-]+)(?: [A-Z]+=\S+)*(?: > \S+)?$")
TARGET = re.compile(r"^([\w-]+(?: [\w-]+)*):(?!=)", re.MULTILINE)
# They only speak to GitHub.
WITHOUT_MAKE = {("smoke", "push", "Look for the token"), ("release", "github", "Create the release")}

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="needs the source tree")


def name_of(path):
    return f"{path.parent.name}/{path.name}"


def load(path):
    # YAML 1.1 reads the key `on` as True.
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def makefile_targets(text):
    return {name for line in TARGET.findall(text) for name in line.split()}


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=name_of)
def test_actions_are_pinned_by_commit_and_name_their_version(path):
    text = path.read_text(encoding="utf-8")
    uses = list(USES.finditer(text))
    assert len(uses) == text.count("uses:")
    for use in uses:
        if use["action"].startswith("./"):
            assert (ROOT / use["action"] / "action.yml").is_file(), use["action"]
        else:
            assert PINNED.fullmatch(use["action"]), use["action"]
            assert re.fullmatch(r"v\d+\.\d+\.\d+", use["version"] or ""), use[0]


def test_an_action_has_one_version_everywhere():
    versions = {}
    for path in (*WORKFLOWS, *ACTIONS):
        for use in USES.finditer(path.read_text(encoding="utf-8")):
            name, _, commit = use["action"].partition("@")
            versions.setdefault(name, set()).add((commit, use["version"]))
    assert len(versions) > 5
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_permissions_are_those_of_each_job(path):
    workflow = load(path)
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["permissions"], "a job without permissions of its own"
        assert job["timeout-minutes"] <= 120
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts)
        assert all("contents" in job["permissions"] for _ in checkouts)


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_commands_are_targets_of_the_makefile(path):
    workflow = load(path)
    targets = makefile_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    for key, job in workflow["jobs"].items():
        for step in job["steps"]:
            if "run" not in step or (workflow["name"], key, step.get("name")) in WITHOUT_MAKE:
                continue
            for line in step["run"].splitlines():
                command = MAKE.fullmatch(line.strip())
                assert command, f"{key}: {line!r} is not a make target"
                assert command["target"] in targets, f"{key}: the Makefile has no target {command['target']!r}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_no_expression_is_pasted_into_a_command(path):
    for job in load(path)["jobs"].values():
        assert [step["run"] for step in job["steps"] if "${{" in step.get("run", "")] == []


def test_targets_are_found():
    text = "A := b\n.PHONY: test lint\ntest lint: x\n\techo no: no\nschemas:\n"
    assert makefile_targets(text) == {"test", "lint", "schemas"}
    assert MAKE.fullmatch('make release-check TAG="$GITHUB_REF_NAME"')["target"] == "release-check"
    assert MAKE.fullmatch("make test; pytest") is None
    assert MAKE.fullmatch("pytest") is None


def test_tests_run_on_every_supported_python():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    tested = load(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert set(supported) <= set(tested)
    assert re.search(r'requires-python = ">=(.+)"', project)[1] == tested[0]


def test_targets_are_phony_and_clean_removes_all_environments():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = {name for line in re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE) for name in line.split()}
    # A folder of the same name, such as docs, would otherwise be taken for what is to be made.
    assert phony == makefile_targets(text)
    done = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True)
    environments = re.findall(r"^\w+_?VENV \?= (\S+)$", text, re.MULTILINE)
    assert len(environments) > 4
    assert set(environments) <= set(done.stdout.split())


def test_updates_wait_for_a_week_and_reach_every_action():
    updates = {update["package-ecosystem"]: update for update in load(GITHUB / "dependabot.yml")["updates"]}
    assert updates.keys() == {"github-actions", "pip"}
    assert all(update["cooldown"]["default-days"] >= 7 for update in updates.values())
    folders = [folder.lstrip("/") for folder in updates["github-actions"]["directories"] if folder != "/"]
    for path in ACTIONS:
        assert any(path.parent.relative_to(ROOT).match(folder) for folder in folders), path


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")), ids=name_of)
def test_forms_of_issues_have_what_github_asks_for(path):
    form = load(path)
    if path.name == "config.yml":
        assert all(link.keys() == {"name", "url", "about"} for link in form["contact_links"])
        return
    assert {"name", "description", "body"} <= form.keys()
    names = [item["id"] for item in form["body"]]
    assert len(set(names)) == len(names)
    assert all(item["attributes"]["label"] and item["type"] in ("textarea", "input") for item in form["body"])
