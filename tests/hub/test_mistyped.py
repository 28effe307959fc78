"""A name that is no folder, with a Hub that cannot be reached: said at once, with what else the name may be."""

from types import SimpleNamespace

import pytest
from adapters import one_layer
from hub_client import HubClient

from hf_farms.errors import DataError, HubError, ModelError
from hf_farms.hub.mistyped import did_you_mean, name_other_places

DEAD = "http://127.0.0.1:9"
UNREACHED = f"the Hub at {DEAD} could not be reached (ConnectError)."
NO_MODEL = f"is no folder here and nothing inside the package (demo, demo-healthy); {UNREACHED}"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with HubClient(SimpleNamespace(endpoint=DEAD), tmp_path_factory.mktemp("work")) as client:
        yield client


@pytest.mark.parametrize(
    ("command", "message", "meant"),
    [
        ("analyze dmeo", f"'dmeo' {NO_MODEL}", "'demo'"),
        ("analyze demo --compare demo-helthy", f"'demo-helthy' {NO_MODEL}", "'demo-healthy'"),
        ("eval nope", f"'nope' {NO_MODEL}", None),
        ("eval nope --base", f"'nope' {NO_MODEL}", None),
        ("prune nope -o out", f"'nope' {NO_MODEL}", None),
        ("prune demo --calibration speeches2 -o out", "'speeches2' is no file here and nothing inside", "'speeches'"),
        ("adapter info nosuch", f"'nosuch' is no folder here; {UNREACHED}", None),
        ("adapter info ada/nosuch", f"Error: {UNREACHED}", None),
        ("adapter merge nope ADAPTER -o out", f"'nope' {NO_MODEL}", None),
        ("adapter diff demo nope -o out", f"'nope' {NO_MODEL}", None),
        ("adapter fuse nosuch ADAPTER -o out", f"'nosuch' is no folder here; {UNREACHED}", None),
        ("adapter export ADAPTER --base nope -o out", f"'nope' {NO_MODEL}", None),
    ],
)
def test_every_command_says_at_once_where_it_looked(client, tmp_path, command, message, meant):
    one_layer([1, 5]).save_pretrained(tmp_path / "math")
    done = client.cli(*command.replace("ADAPTER", str(tmp_path / "math")).split())
    said = " ".join(done["stderr"].split())
    assert (done["status"], done["waits"]) == (1, [])
    assert message in said
    assert ("Did you mean" in said) == (meant is not None)
    if meant:
        assert f"Hint: Did you mean {meant}? Check the network and HF_ENDPOINT" in said


def test_python_says_it_too(client, tmp_path):
    done = client("copy_adapter", "nosuch", folder=str(tmp_path / "copy"))
    assert (done["error"], done["waits"]) == ("HubError", [])
    assert done["message"] == f"'nosuch' is no folder here; {UNREACHED}"


@pytest.mark.parametrize("kind", [HubError, ModelError, DataError])
def test_other_errors_are_unchanged(kind):
    error = kind("'dmeo' is gated.", hint="Log in.")
    assert name_other_places(error, "dmeo", packaged=["demo"]) is error
    dead = kind(UNREACHED)
    assert name_other_places(dead, "ada/dmeo", packaged=["demo"]) is dead


@pytest.mark.parametrize(
    "fault",
    [
        "is neither a folder nor a repository on the Hub.",
        "is not on this machine and the Hub is switched off (HF_HUB_OFFLINE).",
    ],
)
def test_a_name_that_is_unknown(fault):
    error = ModelError(f"'Demo' {fault}", hint="Check the name.")
    said = name_other_places(error, "Demo", packaged=["demo", "demo-healthy"])
    assert type(said) is ModelError
    assert str(said) == str(error)
    assert said.hint == "Did you mean 'demo'? Check the name."
    assert did_you_mean("gpt2", ["demo", "demo-healthy"]) == ""
