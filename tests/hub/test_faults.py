"""Every fault at every request of a push ends in success, or in one sentence and success of the same call."""

import time
from email.utils import formatdate

import pytest
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny

REQUESTS = {
    "whoami": "GET /api/whoami",
    "info": "GET /api/models/ada/m$",
    "create": "POST /api/repos/create",
    "auth-check": "GET /api/models/ada/m/auth-check/write",
    "validate": "POST /api/validate-yaml",
    "preupload": "POST /api/models/ada/m/preupload",
    "batch": "POST /ada/m.git/info/lfs",
    "put": "PUT /upload",
    "verify": "POST /verify",
    "commit": "POST /api/models/ada/m/commit",
}
RETRYABLE_STATUS = {
    "conflict": {"status": 409, "message": "Cannot create repo: another conflicting operation is in progress"},
    "other-commit": {"status": 412, "message": "A commit has happened since. Please refresh and try again."},
    "too-often": {"status": 429, "retry_after": 7},
    "broken": {"status": 500},
    "busy": {"status": 503, "retry_after": 3},
    "gateway": {"status": 502, "page": True},
    "slow": {"delay": 0.3},
    "dropped": {"drop": "request"},
    "lost-answer": {"drop": "answer"},
}
LASTING = {401: "did not accept the token", 403: "the token may not write to", 404: "with status 404"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    tiny("llama").save_pretrained(folder / "m", max_shard_size="40KB")
    (folder / "m" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    with LocalHub() as hub, HubClient(hub, folder) as client:
        client.folder = folder / "m"
        yield client


@pytest.fixture(autouse=True)
def empty(client):
    hub = client.hub
    hub.repos.clear()
    hub.blobs.clear()
    hub.uploads.clear()
    hub.faults.clear()
    hub.requests.clear()


def check_complete(client):
    assert client.hub.files("ada/m") == contents(client.folder)
    assert len(client.hub.uploads) >= len(list(client.folder.glob("*.safetensors")))


@pytest.mark.parametrize("fault", RETRYABLE_STATUS)
@pytest.mark.parametrize("request_", REQUESTS)
def test_what_passes_is_waited_for(client, request_, fault):
    client.hub.fault(REQUESTS[request_], **RETRYABLE_STATUS[fault])
    done = client("push", client.folder, "ada/m")
    assert "error" not in done, done
    assert client.hub.faults[0].times == 0
    check_complete(client)
    if "retry_after" in RETRYABLE_STATUS[fault]:
        assert max(done["waits"]) >= RETRYABLE_STATUS[fault]["retry_after"]
    assert sum(done["waits"]) < 15


@pytest.mark.parametrize("status", LASTING)
@pytest.mark.parametrize("request_", [name for name in REQUESTS if name != "info"])
def test_what_lasts_is_said_once_and_the_same_call_completes_it(client, request_, status):
    client.hub.fault(REQUESTS[request_], status=status)
    before = contents(client.folder)
    done = client("push", client.folder, "ada/m")
    assert done["error"] == "HubError"
    assert LASTING[status] in done["message"]
    assert "\n" not in done["message"]
    assert done["hint"]
    assert done["waits"] == []
    assert "hf_good" not in str(done)
    assert contents(client.folder) == before
    done = client("push", client.folder, "ada/m")
    assert "error" not in done, done
    check_complete(client)


def test_a_hub_that_stays_busy_is_given_up(client):
    client.hub.fault("POST /api/repos/create", status=503, times=100)
    done = client("push", client.folder, "ada/m")
    assert "the Hub refused a request for 'ada/m' with status 503 (injected failure) at http" in done["message"]
    assert done["waits"] == [1, 2, 4, 8]
    assert "Creating ada/m: status 503, trying again in 4 s (3 of 4)" in client.log.read_text()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("request_", "seconds"), [("create", 3600), ("put", 3600), ("commit", 3600), ("put", 200)])
def test_a_long_pause_is_not_slept_through(client, request_, seconds, status):
    """Not by us, nor by the client, which waits for as long and as often as it is asked to."""
    client.hub.fault(REQUESTS[request_], status=status, retry_after=seconds, times=100)
    done = client("push", client.folder, "ada/m")
    assert f"the Hub at {client.hub.endpoint} gave status {status} (injected failure) for /" in done["message"]
    assert f"and asks to wait {seconds} s." in done["message"]
    assert done["hint"] == f"Wait {seconds} seconds, then run the same command again."
    # Once for each file that is on its way.
    long = [wait for wait in done["waits"] if wait >= 200]
    assert len(long) <= (len(contents(client.folder)) if seconds == 200 else 0)
    client.hub.faults.clear()
    client("push", client.folder, "ada/m")
    check_complete(client)


def test_a_pause_until_a_date_is_kept(client):
    begin = int(time.time())
    client.hub.fault("POST /api/repos/create", status=429, retry_after=formatdate(begin + 200, usegmt=True))
    done = client("push", client.folder, "ada/m")
    assert "error" not in done, done
    assert 200 - (time.time() - begin) <= done["waits"][0] <= 200


def test_what_was_uploaded_before_a_failure_is_not_sent_again(client):
    client.hub.fault("POST /api/models/ada/m/commit", status=400)
    assert client("push", client.folder, "ada/m")["error"] == "HubError"
    sent = list(client.hub.uploads)
    assert client("push", client.folder, "ada/m")["result"] == f"{client.hub.endpoint}/ada/m"
    assert client.hub.uploads == sent
    check_complete(client)


def test_an_answer_that_does_not_come_is_asked_for_again_and_then_given_up(client, tmp_path):
    with HubClient(client.hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1") as impatient:
        client.hub.fault("GET /api/whoami", drop="silence")
        done = impatient("preflight", "m")
        assert done["result"]["repo_id"] == "ada/m"
        assert done["waits"][0] == 1
        client.hub.fault("GET /api/whoami", drop="silence", times=100)
        done = impatient("preflight", "m")
        assert "the Hub at " in done["message"]
        assert "could not be reached (ReadTimeout)." in done["message"]
