"""Uploads by xet, as they are by default: in the background, in several commits."""

import hashlib

import pytest
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny

pytest.importorskip("hf_xet")


@pytest.fixture
def client(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "m", max_shard_size="40KB")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    with LocalHub() as hub, HubClient(hub, tmp_path, HF_HUB_DISABLE_XET="0") as client:
        hub.xet = tmp_path / "xet"
        client.folder = tmp_path / "m"
        yield client


def check_complete(client, repo_id, revision="main"):
    there, mine = client.hub.files(repo_id, revision), contents(client.folder)
    assert set(there) == set(mine)
    for name, data in mine.items():
        if name.endswith(".safetensors"):
            assert there[name] == b"in xet: " + hashlib.sha256(data).hexdigest().encode()
        else:
            assert there[name] == data


def test_a_push_and_a_pull_request(client):
    hub = client.hub
    hub.fault("xet-write-token", status=403)
    said = client("push", client.folder, "ada/m")
    assert "'ada/m' could not be pushed (Network error: " in said["message"]
    assert "\n" not in said["message"]
    hub.fault("POST /api/models/ada/m/commit", status=503)
    assert client("push", client.folder, "ada/m")["result"] == f"{hub.endpoint}/ada/m"
    check_complete(client, "ada/m")
    assert list(hub.xet.rglob("*"))
    assert not [request for request in hub.requests if request.startswith("PUT")]
    commits = hub.repos["ada/m"].commits["main"]
    client("push", client.folder, "ada/m")
    assert hub.repos["ada/m"].commits["main"] == commits
    hub.add("bob/m", {"README.md": b"# Theirs"})
    hub.fault("POST /api/models/bob/m/commit", status=400)
    assert "status 400" in client("push", client.folder, "bob/m", create_pr=True)["message"]
    done = client("push", client.folder, "bob/m", create_pr=True)
    assert done["result"] == f"{hub.endpoint}/bob/m/discussions/1"
    check_complete(client, "bob/m", "refs/pr/1")
    assert len(hub.repos["bob/m"].pull_requests) == 1
