import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from hf_farms_cli.app import app
from hf_farms_cli.env import PACKAGES, environment
from typer.testing import CliRunner

runner = CliRunner()
TOKEN = "hf_ThisMustNotBeShownAnywhere"


def env(tmp_path, *options, **variables):
    """`hf-farms env` in a process of its own, because settings of the Hub are read once."""
    command = [sys.executable, "-m", "hf_farms_cli", "env", *options]
    variables = {**os.environ, "HF_HOME": str(tmp_path), **variables}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True)


def test_versions_hardware_and_settings(tmp_path):
    found = json.loads(env(tmp_path, "--json", HF_ENDPOINT="https://user:secret@hub.example:8443/x").stdout)
    assert found["hf-farms"] == version("hf-farms")
    for name in PACKAGES:
        try:
            assert found[name] == version(name)
        except ModuleNotFoundError:
            assert found[name] is None
    assert found["torch threads"] >= 1
    assert len(found["gpu"]) == torch.cuda.device_count()
    assert found["HF_HOME"] == str(tmp_path)
    assert found["HF_HUB_OFFLINE"] is True
    assert found["HF_ENDPOINT"] == "https://hub.example:8443/x"
    assert found["memory (GiB)"] > 0


@pytest.mark.parametrize("options", [(), ("--json",), ("--format", "agent")])
def test_whether_there_is_a_token_but_never_which(options, tmp_path):
    with_token = env(tmp_path, *options, HF_TOKEN=TOKEN)
    (tmp_path / "token").write_text(TOKEN)
    saved = env(tmp_path, *options)
    for done in (with_token, saved):
        assert TOKEN not in done.stdout + done.stderr
        assert '"has token": true' in done.stdout or "- has token: yes" in done.stdout


def test_the_text_for_people_is_a_list_and_the_rest_is_on_stderr(tmp_path):
    done = env(tmp_path)
    assert all(line.startswith("- ") for line in done.stdout.splitlines())
    assert "- has token: no" in done.stdout
    assert "Copy the text below" in done.stderr
    assert env(tmp_path, "-q").stdout.strip() == version("hf-farms")


def test_a_torch_that_does_not_start_is_part_of_the_report(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = runner.invoke(app, ["env"])
    assert done.exit_code == 0, done.output
    assert "- torch cannot be used: ModuleNotFoundError" in done.stdout
    assert f"- torch: {version('torch')}" in done.stdout
    assert "- HF_HOME:" in done.stdout


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("hf_farms_cli.env.PACKAGES", ("no-such-package",))
    assert environment()["no-such-package"] is None
    assert "- no-such-package: not available" in runner.invoke(app, ["env"]).stdout
