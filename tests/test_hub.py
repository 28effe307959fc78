"""Against a Hub on this machine, with the unmodified client in processes of its own (endpoints are read at import)."""

import json
import os
import subprocess
import sys

import pytest
from local_hub import LocalHub

RUN = "from hf_farms_cli.app import main; main()"


@pytest.fixture
def hub():
    with LocalHub() as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    """Run `python -c code arguments` as a user of that Hub."""

    def run(code, *arguments, token="hf_good", endpoint=None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint or hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"HF_TOKEN": token} if token else {}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


PUSH = "import sys; from hf_farms.hub import push; print(push(sys.argv[1], sys.argv[2]))"
PREFLIGHT = """
import sys
from hf_farms.hub import preflight
from hf_farms.errors import HubError
try:
    print(preflight("named", repo_id=sys.argv[1] or None).repo_id)
except (HubError, ValueError) as error:
    print(type(error).__name__, error, getattr(error, "hint", None))
"""


def test_the_users_own_line(hub, client, llama, tmp_path):
    """A model from the Hub is pruned and pushed, and what arrives is what is on disk."""
    prepared = client(
        "import sys; from transformers import AutoTokenizer; from hf_farms.demo import demo_model;"
        "AutoTokenizer.from_pretrained(demo_model()).save_pretrained(sys.argv[1])",
        tmp_path / "dense",
    )
    assert prepared.returncode == 0, prepared.stderr
    from models import tiny

    tiny("llama", vocab_size=2048).save_pretrained(tmp_path / "dense")
    hub.add("meta/tiny", contents(tmp_path / "dense"))
    done = client(RUN, "prune", "meta/tiny", "--push")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tiny-farms-wanda-50"
    assert hub.files("ada/tiny-farms-wanda-50") == contents(folder)
    assert f"url: {hub.endpoint}/ada/tiny-farms-wanda-50" in done.stdout
    assert b"base_model: meta/tiny" in hub.files("ada/tiny-farms-wanda-50")["README.md"]
    assert b'from_pretrained("ada/tiny-farms-wanda-50")' in hub.files("ada/tiny-farms-wanda-50")["README.md"]
    sent = list(hub.uploads)
    again = client(RUN, "prune", "meta/tiny", "--push", "-q")
    assert again.stdout.strip() == f"{hub.endpoint}/ada/tiny-farms-wanda-50"
    assert hub.uploads == sent
    loaded = client(
        "from transformers import AutoModelForCausalLM as A; m = A.from_pretrained('ada/tiny-farms-wanda-50');"
        "print(sum(int((p == 0).sum()) for p in m.parameters()))"
    )
    assert int(loaded.stdout) > 0, loaded.stderr


def test_a_push_that_failed_is_finished_by_the_same_call(hub, client, llama, tmp_path):
    llama.save_pretrained(tmp_path / "m")
    before = contents(tmp_path / "m")
    hub.fail_next(r"POST /api/models/.*/commit/", status=400, times=1)
    done = client(PUSH, tmp_path / "m", "ada/m")
    assert done.returncode == 1
    assert "the Hub refused a request for 'ada/m' with status 400" in done.stderr
    assert contents(tmp_path / "m") == before
    done = client(PUSH, tmp_path / "m", "ada/m")
    assert done.returncode == 0, done.stderr
    assert hub.files("ada/m") == before
    assert len(hub.uploads) == 1


@pytest.mark.parametrize(
    ("repo_id", "token", "answer"),
    [
        ("", "hf_good", "ada/named"),
        ("short", "hf_good", "ada/short"),
        ("ada/full", "hf_good", "ada/full"),
        ("bob/full", "hf_good", "HubError the token may not write to 'bob/full'"),
        ("a b", "hf_good", "ValueError repo_id must be a valid repository name, got 'ada/a b'"),
        ("", "hf_bad", "HubError the Hub did not accept the token. Run `hf auth login`"),
        ("", None, "HubError a push must have a token, got none. Run `hf auth login`"),
    ],
)
def test_preflight(hub, client, repo_id, token, answer):
    done = client(PREFLIGHT, repo_id, token=token)
    assert done.stdout.startswith(answer), done.stdout + done.stderr
    assert (answer in hub.repos) == (answer.split()[0] not in ("HubError", "ValueError"))


def test_a_push_without_a_token_ends_before_any_work(hub, client, tmp_path):
    done = client(RUN, "prune", "demo", "--push", token=None)
    assert done.returncode == 1
    assert "a push must have a token" in done.stderr
    assert "Hint: Run `hf auth login`" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["home"])


@pytest.mark.parametrize("token", ["hf_good", None])
def test_an_unknown_model_is_named(hub, client, token):
    done = client(RUN, "analyze", "nobody/nothing", token=token)
    assert done.returncode == 1
    assert "'nobody/nothing' is neither a folder nor a repository on the Hub" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_revision_that_is_not_there(hub, client, llama, tmp_path):
    llama.save_pretrained(tmp_path / "m")
    hub.add("meta/tiny", contents(tmp_path / "m"))
    done = client(RUN, "analyze", "meta/tiny", "--revision", "v9")
    assert done.returncode == 1
    assert "revision must exist, got one that 'meta/tiny' does not have" in " ".join(done.stderr.split())


def test_a_dead_endpoint_is_named(client):
    done = client(PREFLIGHT, "", endpoint="http://127.0.0.1:9")
    assert "HubError the Hub at http://127.0.0.1:9 could not be reached" in done.stdout


def test_a_folder_that_is_no_checkpoint_is_not_pushed(client, tmp_path):
    (tmp_path / "m").mkdir()
    done = client(PUSH, tmp_path / "m", "ada/m")
    assert "folder must hold config.json and *.safetensors" in done.stderr


def test_a_model_of_the_hub_is_analysed_from_its_safetensors_alone(hub, client, llama, tmp_path):
    llama.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    other = {"pytorch_model.bin": b"not to be fetched", "original/consolidated.safetensors": b"nor this"}
    hub.add("meta/tiny", {**contents(tmp_path / "model"), **other})
    done = client(RUN, "analyze", "meta/tiny", "--format", "json", token=None)
    assert done.returncode == 0, done.stderr
    local = client(RUN, "analyze", tmp_path / "model", "--format", "json", token=None)
    assert json.loads(done.stdout)["blocks"] == json.loads(local.stdout)["blocks"]
    fetched = {path.name for path in (tmp_path / "home" / "hub").rglob("*") if path.suffix in (".safetensors", ".bin")}
    assert fetched == {path.name for path in (tmp_path / "model").glob("*.safetensors")}


def test_a_shard_that_the_hub_does_not_have_is_named(hub, client, llama, tmp_path):
    llama.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    files = contents(tmp_path / "model")
    shard = sorted(name for name in files if name.endswith(".safetensors"))[1]
    del files[shard]
    hub.add("meta/tiny", files)
    done = client(RUN, "analyze", "meta/tiny", token=None)
    assert done.returncode == 1
    assert shard in done.stderr
    assert "Traceback" not in done.stderr
