"""A dry run without the Hub: everything on this machine is checked, and the rest is named."""

import json
import sys
from dataclasses import replace

import pytest
from adapters import one_layer
from hf_farms_cli.app import app
from huggingface_hub import HfApi, constants, get_session
from models import tiny
from typer.testing import CliRunner

from hf_farms import EvaluationConfig, PruneConfig, hub, prune_checkpoint
from hf_farms.errors import HubError, OutputError

UNCHECKED = [
    "the token and its write access",
    "whether the repository exists",
    "its visibility and the files in it",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("work") / "pruned"
    prune_checkpoint("demo", out, config=PruneConfig(method="magnitude"), evaluation=EvaluationConfig(source=None))
    return out


@pytest.fixture(params=["switched off", "no network"])
def offline(request, monkeypatch):
    if request.param == "switched off":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return

    def refuse(api, *arguments, **options):
        # httpx or httpx2, by the version of the client.
        raise sys.modules[type(get_session()).__module__.partition(".")[0]].ConnectError("no route")

    monkeypatch.setattr(HfApi, "whoami", refuse)


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_dry_run_shows_the_files_and_names_what_was_not_checked(folder, offline):
    done = cli("push", folder, "--dry-run", "--format", "human")
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()
    assert first == "[dry-run] repository: <user>/pruned (not checked, visibility as the namespace has it, branch main)"
    assert any(line.startswith("[dry-run] file: README.md (") for line in lines)
    assert lines[-3:] == [f"[dry-run] not checked, as the Hub could not be reached: {what}" for what in UNCHECKED]
    named = cli("push", folder, "--repo-id", "ada/x", "--push-revision", "b", "--private", "--dry-run", "--json")
    plan = json.loads(named.stdout)["plan"]
    assert {"repo_id": "ada/x", "exists": None, "private": True, "branch": "b"}.items() <= plan.items()
    assert plan["unchecked_reason"] == "the Hub could not be reached"
    assert "whether the branch exists" in plan["unchecked"][-2]


def test_a_dry_run_of_prune_with_push_works_too(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("prune", "demo", "--push", "--dry-run", "-o", "new")
    assert done.exit_code == 0, done.output
    assert "[dry-run] push: <user>/new (not checked, " in done.stdout
    assert f"[dry-run] not checked, as the Hub could not be reached: {UNCHECKED[0]}" in done.stdout


@pytest.mark.parametrize("base", [None, "meta/tiny"])
def test_a_dry_run_of_an_adapter_works_too(offline, base, tmp_path, monkeypatch):
    replace(one_layer([1, 5]), base_model=base).save_pretrained(tmp_path / "math")
    if not constants.HF_HUB_OFFLINE:
        refuse = HfApi.whoami
        monkeypatch.setattr(HfApi, "model_info", refuse)
    done = cli("adapter", "push", tmp_path / "math", "--dry-run", "--format", "human")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    first, *lines = done.stdout.splitlines()
    assert first == "[dry-run] repository: <user>/math (not checked, visibility as the namespace has it, branch main)"
    assert any(line.startswith("[dry-run] file: s2ft_adapter.safetensors (") for line in lines)
    license = "the license of the base model, which may ask for its files and another name"
    unchecked = [*UNCHECKED, license] if base else UNCHECKED
    assert lines[-len(unchecked) :] == [
        f"[dry-run] not checked, as the Hub could not be reached: {what}" for what in unchecked
    ]
    refused = cli("adapter", "push", tmp_path / "math")
    assert refused.exit_code == 1
    assert "could not be reached" in refused.stderr or "HF_HUB_OFFLINE" in refused.stderr


def test_what_is_on_this_machine_is_still_checked(folder, offline, tmp_path):
    refused = cli("push", folder, "--repo-id", "a b", "--dry-run")
    assert refused.exit_code != 0
    tiny("llama").save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match="missing or damaged"):
        hub.plan_push(tmp_path / "m", "ada/x", unreachable_ok=True)


def test_a_push_needs_the_hub_and_a_checked_plan(folder, offline):
    with pytest.raises(HubError, match=r"could not be reached|must reach the Hub"):
        hub.plan_push(folder, "ada/x")
    plan = hub.plan_push(folder, "ada/x", unreachable_ok=True)
    assert list(plan.unchecked) == UNCHECKED
    with pytest.raises(ValueError, match="plan must be checked with the Hub, got one without the token"):
        hub.push(folder, plan=plan)
