"""Against a Hub on this machine, with the unmodified client in processes of its own (endpoints are read at import).

Faults, refusals and kills are in hub/, the command line of pushes in cli/test_push.py.
"""

import json
import subprocess
import sys

import pytest
from hub_client import HubClient, contents, environment
from local_hub import LocalHub, Repo
from models import tiny

RUN = "from hf_farms_cli.app import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def server():
    with LocalHub() as server:
        yield server


@pytest.fixture(scope="module")
def client(server, folder):
    with HubClient(server, folder) as client:
        yield client


@pytest.fixture(scope="module")
def anonymous(server, folder):
    (folder / "anonymous").mkdir()
    with HubClient(server, folder / "anonymous", token=None) as client:
        yield client


@pytest.fixture
def hub(server):
    server.repos.clear()
    server.faults.clear()
    return server


def said(done):
    assert done["status"] == 1, done
    assert "Traceback" not in done["stderr"]
    return " ".join(done["stderr"].split())


def test_the_users_own_line(hub, client, tmp_path):
    """A model from the Hub is pruned and pushed, and what arrives is what is on disk."""
    from transformers import AutoTokenizer

    from hf_farms.demo import demo_model

    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path / "dense")
    tiny("llama", vocab_size=2048).save_pretrained(tmp_path / "dense")
    hub.add("meta/tiny", contents(tmp_path / "dense"))
    environ = environment(hub.endpoint, tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", RUN, "prune", "meta/tiny", "--push", "--format", "human"],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tiny-farms-wanda-50"
    assert hub.files("ada/tiny-farms-wanda-50") == contents(folder)
    assert f"url: {hub.endpoint}/ada/tiny-farms-wanda-50" in done.stdout
    assert b"base_model: meta/tiny" in hub.files("ada/tiny-farms-wanda-50")["README.md"]
    assert b"ada/tiny-farms-wanda-50" in hub.files("ada/tiny-farms-wanda-50")["README.md"]
    sent = list(hub.uploads)
    again = client.cli("prune", "meta/tiny", "--push", "-q", "-o", str(folder))
    assert again["stdout"].strip() == f"{hub.endpoint}/ada/tiny-farms-wanda-50"
    assert hub.uploads == sent


@pytest.mark.parametrize(
    ("repo_id", "answer"),
    [
        (None, "ada/named"),
        ("short", "ada/short"),
        ("ada/full", "ada/full"),
        ("bob/full", "the token may not write to 'bob/full'"),
    ],
)
def test_preflight(hub, client, repo_id, answer):
    done = client("preflight", "named", repo_id=repo_id)
    assert answer in (done["result"]["repo_id"] if "result" in done else done["message"])
    assert list(hub.repos) == ([answer] if "result" in done else [])


def test_a_push_without_a_good_token_ends_before_any_work(hub, client, anonymous, folder):
    done = anonymous.cli("prune", "demo", "--push")
    assert "a push must have a token, got none" in said(done)
    assert "Hint: Run `hf auth login`" in said(done)
    shown = anonymous.cli("prune", "demo", "--push", "--dry-run")["stdout"]
    assert "[dry-run] push: <user>/demo-farms-wanda-50 (not checked, " in shown
    assert "[dry-run] not checked, as there is no token (run `hf auth login`): the token and its write access" in shown
    done = anonymous.cli("prune", "demo", "--push", "--token", "hf_bad")
    assert f"the Hub at {hub.endpoint} did not accept the token. Hint: Run `hf auth login`" in said(done)
    assert "hf_bad" not in said(done)
    assert not list(folder.rglob("demo*"))


def test_an_unknown_model_is_named(hub, client, anonymous):
    for user in (client, anonymous):
        done = user.cli("analyze", "nobody/nothing")
        assert "'nobody/nothing' is neither a folder nor a repository on the Hub" in said(done)


def test_a_revision_that_is_not_there(hub, client, llama, tmp_path):
    llama.save_pretrained(tmp_path / "m")
    hub.add("meta/tiny", contents(tmp_path / "m"))
    done = client.cli("analyze", "meta/tiny", "--revision", "v9")
    assert "revision must exist, got one that 'meta/tiny' does not have" in said(done)


def test_a_model_of_the_hub_is_analyzed_from_its_safetensors_alone(hub, anonymous, llama, tmp_path):
    llama.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    other = {"pytorch_model.bin": b"not to be fetched", "original/consolidated.safetensors": b"nor this"}
    hub.add("meta/sharded", {**contents(tmp_path / "model"), **other})
    done = anonymous.cli("analyze", "meta/sharded", "--format", "json")
    assert done["status"] == 0, done["stderr"]
    local = anonymous.cli("analyze", str(tmp_path / "model"), "--format", "json")
    assert json.loads(done["stdout"])["blocks"] == json.loads(local["stdout"])["blocks"]
    home = anonymous.log.parent / "home" / "hub" / "models--meta--sharded"
    fetched = {path.name for path in home.rglob("*") if path.suffix in (".safetensors", ".bin")}
    assert fetched == {path.name for path in (tmp_path / "model").glob("*.safetensors")}


def test_a_shard_that_the_hub_does_not_have_is_named(hub, anonymous, llama, tmp_path):
    llama.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    files = contents(tmp_path / "model")
    shard = sorted(name for name in files if name.endswith(".safetensors"))[1]
    del files[shard]
    hub.add("meta/incomplete", files)
    assert shard in said(anonymous.cli("analyze", "meta/incomplete"))


def test_a_cache_that_cannot_be_written_is_named_and_not_the_model(hub, tmp_path):
    from hf_farms.demo import demo_model

    hub.repos["org/m"] = Repo(files={p.name: p.read_bytes() for p in demo_model().iterdir() if p.is_file()})
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", RUN, "analyze", "org/m", "-q"],
        env=environment(hub.endpoint, tmp_path / "file" / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Error: the Hub's cache must be in a writable folder, got" in done.stderr
    assert "Hint: Set HF_HOME to another folder" in done.stderr
    assert "Traceback" not in done.stderr
