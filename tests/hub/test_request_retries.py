"""A Hub that fails: reads are retried within the failure budget, and lasting errors are reported in one sentence."""

import shutil
from types import SimpleNamespace

import pytest
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny

from hf_farms.demo import demo_model
from hf_farms.errors import HubError
from hf_farms.hub import request_retries
from hf_farms.hub.failure_budget import Budget

FOREVER = 10**6
ROUTES = {
    "info": "GET /api/models/meta/dense$",
    "config head": "HEAD /meta/dense/resolve/.*/config.json",
    "config": "GET /meta/dense/resolve/.*/config.json",
    "weights head": "HEAD /meta/dense/resolve/.*safetensors",
    "weights": "GET /meta/dense/resolve/.*model.safetensors$",
}
PUSH_ROUTES = {
    "whoami": "GET /api/whoami",
    "repository": "GET /api/models/ada/m$",
    "create": "POST /api/repos/create",
    "auth-check": "GET /api/models/ada/m/auth-check",
    "preupload": "POST .*preupload",
    "batch": "POST .*lfs",
    "put": "PUT /upload",
    "commit": "POST .*commit",
}
FAULTS = {
    "busy": {"status": 503},
    "gateway": {"status": 502, "page": True},
    "forbidden": {"status": 403},
    "wrong": {"status": 400, "body": b""},
    "conflict": {"status": 409},
    "moved": {"status": 404},
    "page": {"body": b"<html>Log in first</html>", "page": True},
    "bare page": {"body": b"<html>Log in first</html>"},
    "empty": {"body": b""},
    "list": {"body": b"[]"},
    "object": {"body": b"{}"},
    "null": {"body": b"null"},
    "number": {"body": b"7"},
    "reset": {"drop": "request"},
    "lost": {"drop": "answer"},
    "cut": {"cut": True},
    "short": {"say": 3},
    "nowhere": {"location": "http://127.0.0.1:9/x"},
}
PRUNE = ("--method", "magnitude", "--evaluation", "none", "--no-baseline")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    model = folder / "m"
    tiny("llama").save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model() / name, model)
    (model / "LICENSE").write_text("as it is")
    with LocalHub() as hub, HubClient(hub, folder) as client:
        client.folder = folder
        yield client


@pytest.fixture(autouse=True)
def clean(client):
    hub = client.hub
    for state in (hub.repos, hub.blobs, hub.faults, hub.requests):
        state.clear()
    hub.add("meta/dense", contents(client.folder / "m"))
    shutil.rmtree(client.folder / "home", ignore_errors=True)


def told(done, hub):
    """The one sentence: of the Hub, with no word of Python, after a bounded time."""
    assert done["status"] == 1, done
    said = " ".join(done["stderr"].split())
    said = said[said.rindex("Error: ") :]
    assert hub.endpoint in said, said
    assert said.count("Error: ") == 1
    assert "Hint: " in said
    for word in (
        "KeyError",
        "TypeError",
        "object has no attribute",
        "Expecting value",
        "should not happen",
        "weights (",
    ):
        assert word not in said
    assert len(hub.requests) <= 40
    # A minute of ours; older clients wait some seconds more by themselves.
    assert sum(done["waits"]) <= 75
    return said


def failing(client, route, fault, *command):
    client.hub.fault(route, times=FOREVER, **FAULTS[fault])
    return client.cli(*command)


@pytest.mark.parametrize(
    ("route", "fault", "message"),
    [
        ("info", "busy", "refused a request for 'meta/dense' with status 503 (injected failure)"),
        ("info", "page", "gave an answer that is not of a Hub: status 200 (Asking for meta/dense)"),
        ("info", "list", "gave an answer that is not of a Hub: status 200 (Asking for meta/dense)"),
        ("config head", "forbidden", "gave status 403 (injected failure) for /meta/dense/resolve/"),
        ("config", "short", "sent a file of 'meta/dense' with the wrong length"),
        ("weights head", "busy", "model.safetensors, 5 times"),
        ("weights head", "forbidden", "gave status 403 (injected failure)"),
        ("weights head", "moved", "with status 404 (injected failure)"),
        ("weights head", "bare page", "gave an answer that is not of a Hub (status 200)"),
        # Older clients follow where it leads.
        (
            "weights head",
            "nowhere",
            ("gave an answer that is not of a Hub for 'meta/dense'", "http://127.0.0.1:9, to which the"),
        ),
        (
            "weights",
            "busy",
            "gave status 503 (injected failure) for /meta/dense/resolve/main/model.safetensors, 5 times",
        ),
        ("weights", "page", "gave a web page (status 200)"),
        ("weights", "reset", "gave no whole answer (ReadError)"),
        ("weights", "cut", "failed too often: 12 requests, the last with a broken body"),
        ("weights", "nowhere", "http://127.0.0.1:9, to which the Hub at http://127.0.0.1"),
    ],
)
def test_a_download_that_fails_for_ever_is_told(client, route, fault, message):
    said = told(failing(client, ROUTES[route], fault, "analyze", "meta/dense"), client.hub)
    assert any(known in said for known in ([message] if isinstance(message, str) else message))


@pytest.mark.parametrize(
    ("route", "fault", "message"),
    [
        ("whoami", "object", "gave an answer that is not of a Hub: status 200 (Asking whose token it is)"),
        ("whoami", "null", "gave an answer that is not of a Hub: status 200"),
        ("create", "conflict", "gave an answer that is not of a Hub: status 409 (Creating ada/m)"),
        ("put", "busy", "failed too often: 12 requests, the last with status 503 (injected failure)"),
        ("batch", "empty", "gave an answer that is not of a Hub: status 200 (Uploading to ada/m)"),
        ("commit", "object", "gave an answer that is not of a Hub: status 200 (Uploading to ada/m)"),
    ],
)
def test_an_upload_that_fails_for_ever_is_told(client, route, fault, message):
    done = failing(client, PUSH_ROUTES[route], fault, "push", "m", "--repo-id", "ada/m")
    assert message in told(done, client.hub)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("route", [*ROUTES, *PUSH_ROUTES])
def test_every_fault_of_every_request_ends_well_or_is_told(client, route, fault):
    command = ("analyze", "meta/dense") if route in ROUTES else ("push", "m", "--repo-id", "ada/m")
    done = failing(client, (ROUTES | PUSH_ROUTES)[route], fault, *command)
    if done["status"] != 0:
        told(done, client.hub)


@pytest.mark.parametrize(
    "command",
    [
        ("analyze", "meta/dense"),
        ("analyze", "demo", "--compare", "meta/dense"),
        ("prune", "meta/dense", "-o", "o"),
        ("prune", "demo", "--push", "-o", "o"),
        ("eval", "meta/dense"),
        ("eval", "demo", "--text", "ada/texts"),
        ("push", "m", "--repo-id", "ada/m"),
    ],
    ids=" ".join,
)
def test_every_command_gives_up_soon(client, command):
    told(failing(client, ".", "busy", *command), client.hub)
    assert len(client.hub.requests) <= 12


@pytest.mark.parametrize(
    ("route", "fault", "waits"),
    [
        ("config head", {"status": 503, "times": 2}, [1, 2]),
        ("weights head", {"status": 500}, [1]),
        ("weights", {"status": 503, "times": 3}, [1, 2, 4]),
        ("weights", {"status": 429, "retry_after": 7}, [7]),
        ("weights", {"drop": "request"}, [1]),
        ("weights", {"drop": "answer", "times": 2}, [1, 2]),
        ("weights", {"cut": True}, [1]),
        ("weights", {"say": 10}, [1]),
    ],
)
def test_what_passes_is_waited_for(client, route, fault, waits):
    client.hub.fault(ROUTES[route], **fault)
    done = client.cli("analyze", "meta/dense", "-q")
    assert done["status"] == 0, done
    assert done["waits"] == waits
    assert done["stdout"] == client.cli("analyze", "m", "-q")["stdout"]


def test_a_file_that_a_library_would_do_without_is_not_lost(client):
    """transformers takes an error of the generation config for its absence."""
    pattern = "HEAD /meta/dense/resolve/.*generation_config"
    client.hub.fault(pattern, status=503, times=FOREVER)
    said = told(client.cli("prune", "meta/dense", *PRUNE, "-o", "o"), client.hub)
    assert "generation_config.json, 5 times" in said
    assert not (client.folder / "o").exists()


def test_the_library_gives_up_too_and_leaves_the_client_as_it_was(client):
    client.hub.fault("GET /api/models/meta/dense", status=503, times=FOREVER)
    done = client("weights_size", "meta/dense")
    assert done["error"] == "HubError"
    assert done["waits"] == [1, 2, 4, 8]
    client.hub.faults.clear()
    assert client("weights_size", "meta/dense")["result"] > 0


class Stream:
    """A body, in the words of an HTTP library."""

    class SyncByteStream:
        pass

    class TimeoutException(Exception):  # noqa: N818
        pass

    class ReadTimeout(TimeoutException):
        pass

    class NetworkError(Exception):
        pass

    class RemoteProtocolError(Exception):
        pass


@pytest.fixture
def body(monkeypatch):
    """A function: chunks and the time that each takes -> what is received, and the budget."""

    def receive(*chunks):
        clock = SimpleNamespace(now=0.0)
        budget = Budget(clock=lambda: clock.now)
        budget.lose("before", failures=3)

        class Body:
            def __iter__(self):
                for seconds, chunk in chunks:
                    clock.now += seconds
                    if isinstance(chunk, Exception):
                        raise chunk
                    yield chunk

        monkeypatch.setitem(request_retries.sys.modules, Body.__module__.partition(".")[0], Stream)
        return list(request_retries._counted(Body(), budget)), budget

    return receive


def test_a_large_file_that_arrives_gives_the_budget_back(body):
    assert body((1, b"x" * 2**20))[1]._failures == 0
    assert body((1, b"x"))[1]._failures == 3


def test_a_body_that_trickles_is_broken_off_and_a_slow_one_is_not(body):
    with pytest.raises(Stream.ReadTimeout, match="bytes in a minute"):
        body(*[(5, b"x")] * 100)
    assert len(body(*[(5, b"x" * 100)] * 100)[0]) == 100


def test_a_reset_becomes_what_downloads_go_on_after(body):
    with pytest.raises(Stream.RemoteProtocolError, match="reset by peer"):
        body((1, b"x"), (1, Stream.NetworkError("reset by peer")))


def test_a_minute_of_failures_is_enough():
    budget = Budget()
    budget.check("http://hub")
    budget.lose("status 503", 59.0, failures=1)
    budget.check("http://hub")
    budget.lose(seconds=1.0)
    with pytest.raises(
        HubError, match=r"^the Hub at http://hub failed too often: 1 requests, the last with status 503\.$"
    ):
        budget.check("http://hub")
