"""Adapters of S2FT on a Hub on this machine: pushed with card and license, and loaded by their id."""

import sys
from dataclasses import replace

import pytest
from adapters import WEIGHT, change_slices, one_layer
from hub_client import HubClient, contents, environment
from local_hub import LocalHub
from models import tiny
from processes import finished

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft
from hf_farms.s2ft.saving import CONFIG_NAME, WEIGHTS_NAME, save_selection
from hf_farms.s2ft.surgery import selection_of


@pytest.fixture(scope="module")
def server():
    with LocalHub() as server:
        yield server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    with HubClient(server, tmp_path_factory.mktemp("work")) as client:
        yield client


@pytest.fixture
def hub(server):
    server.repos.clear()
    server.faults.clear()
    return server


@pytest.fixture
def model():
    model = tiny("llama")
    model.config._name_or_path = "meta/tiny"
    apply_s2ft(model, S2FTConfig(budget=0.1))
    return change_slices(model)


def test_a_pushed_adapter_comes_back(hub, client, model, tmp_path):
    card = b"---\nlicense: llama3.1\nbase_model: x\n---\n"
    hub.add("meta/tiny", {"config.json": b"{}", "README.md": card, "LICENSE": b"terms"})
    S2FTAdapter.from_model(model).save_pretrained(tmp_path / "saved")
    done = client("push_adapter", tmp_path / "saved", "Llama-3.1-math")
    assert done["result"] == f"{hub.endpoint}/ada/Llama-3.1-math"
    files = hub.files("ada/Llama-3.1-math")
    assert {name: files[name] for name in (WEIGHTS_NAME, CONFIG_NAME)} == contents(tmp_path / "saved")
    assert files["LICENSE"] == b"terms"
    assert b"Built with Llama" in files["README.md"]
    for text in (b"base_model: meta/tiny", b"base_model_relation: adapter", b"library_name: hf-farms", b"- s2ft"):
        assert text in files["README.md"]
    for text in (
        b'S2FTAdapter.from_pretrained("ada/Llama-3.1-math")',
        b'from_pretrained("meta/tiny", dtype=torch.float32)',
    ):
        assert text in files["README.md"]
    assert client("copy_adapter", "ada/Llama-3.1-math", folder=str(tmp_path / "copy")) == {"result": None, "waits": []}
    assert contents(tmp_path / "copy") == contents(tmp_path / "saved")
    # Another one in its place; and the first at its commit.
    first = hub.repos["ada/Llama-3.1-math"].sha
    one_layer([1, 5]).save_pretrained(tmp_path / "other")
    assert "result" in client("push_adapter", tmp_path / "other", "Llama-3.1-math", include_base=False)
    assert "error" not in client("copy_adapter", "ada/Llama-3.1-math", folder=str(tmp_path / "second"))
    second = S2FTAdapter.from_pretrained(tmp_path / "second")
    assert list(second.patches) == [WEIGHT]
    assert second.patches[WEIGHT].base is None
    assert "error" not in client("copy_adapter", "ada/Llama-3.1-math", folder=str(tmp_path / "again"), revision=first)


def test_a_base_model_without_a_namespace_has_its_license(hub, client, tmp_path):
    hub.add("gpt2", {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"terms"})
    replace(one_layer([1, 5]), base_model="gpt2").save_pretrained(tmp_path / "saved")
    assert "result" in client("push_adapter", tmp_path / "saved", "math")
    assert client.cli("adapter", "push", str(tmp_path / "saved"), "--repo-id", "ada/again")["status"] == 0
    for repo in ("ada/math", "ada/again"):
        files = hub.files(repo)
        assert files["LICENSE"] == b"terms"
        for text in (b"base_model: gpt2", b"license: mit", b'from_pretrained("gpt2", dtype=torch.float32)'):
            assert text in files["README.md"]


def test_a_pushed_adapter_is_the_same_from_memory_and_from_its_folder(hub, client, model, tmp_path):
    hub.add("meta/tiny", {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"terms"})
    S2FTAdapter.from_model(model).save_pretrained(tmp_path / "math")
    assert "result" in client("push_adapter", tmp_path / "math", "ada/math")
    first = hub.files("ada/math")
    hub.repos.pop("ada/math")
    assert client.cli("adapter", "push", str(tmp_path / "math"))["status"] == 0
    assert hub.files("ada/math") == first


@pytest.mark.parametrize("name", ["./math", "my model", "a/b/c", "demo"])
def test_a_base_model_that_is_not_on_the_hub_is_not_asked_for(hub, client, tmp_path, name):
    replace(one_layer([1, 5]), base_model=name).save_pretrained(tmp_path / "math")
    done = client.cli("adapter", "push", str(tmp_path / "math"))
    assert (done["status"], done["stderr"]) == (0, "")
    assert b"base_model:" not in hub.files("ada/math")["README.md"]


def test_refusals_of_a_push(hub, client, model, tmp_path):
    hub.add("meta/tiny", {"config.json": b"{}"})
    S2FTAdapter.from_model(model).save_pretrained(tmp_path / "saved")
    done = client("push_adapter", tmp_path / "saved", "meta/tiny")
    assert done["message"] == "repo_id must not be the dense model's own repository, got 'meta/tiny'."
    hub.add("ada/others", {"config.json": b"{}"})
    done = client("push_adapter", tmp_path / "saved", "ada/others")
    assert "must be new or one that hf-farms wrote" in done["message"]
    done = client("push_adapter", tmp_path / "saved", "bob/math")
    assert "the token may not write to 'bob/math'" in done["message"]
    assert set(hub.repos) == {"meta/tiny", "ada/others"}


def test_repositories_without_an_adapter(hub, client, model, tmp_path):
    hub.add("meta/tiny", {"config.json": b"{}"})
    done = client("copy_adapter", "meta/tiny", folder=str(tmp_path / "copy"))
    assert done["error"] == "DataError"
    assert done["message"].startswith("'meta/tiny' must hold an adapter of S2FT, got a repository without s2ft_adapter")
    done = client("copy_adapter", "nobody/nothing", folder=str(tmp_path / "copy"))
    assert done["error"] == "ModelError"
    save_selection(selection_of(model), tmp_path / "selection")
    hub.add("ada/selection", contents(tmp_path / "selection"))
    done = client("copy_adapter", "ada/selection", folder=str(tmp_path / "copy"))
    assert "got a selection only" in done["message"]
    assert not (tmp_path / "copy").exists()


LOAD = """
from hf_farms import S2FTAdapter
from hf_farms.errors import HfFarmsError
try:
    print(list(S2FTAdapter.from_pretrained("ada/math").patches))
except HfFarmsError as error:
    print(type(error).__name__, error, error.hint)
"""


def test_a_hub_that_is_not_asked_is_no_repository_without_an_adapter(hub, tmp_path):
    """The client says in both cases that there is no such file."""
    one_layer([1, 5]).save_pretrained(tmp_path / "saved")
    hub.add("ada/math", contents(tmp_path / "saved"))

    def load(endpoint, **more):
        done = finished([sys.executable, "-c", LOAD], env=environment(endpoint, tmp_path / "home", **more))
        assert done.returncode == 0, done.stderr
        return done.stdout

    offline = load(hub.endpoint, HF_HUB_OFFLINE="1")
    assert offline.startswith("ModelError 'ada/math' is not on this machine and the Hub is switched off")
    assert "Unset HF_HUB_OFFLINE" in offline
    assert load(hub.endpoint) == f"{[WEIGHT]}\n"
    assert load(hub.endpoint, HF_HUB_OFFLINE="1") == f"{[WEIGHT]}\n"
