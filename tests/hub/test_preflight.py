"""What is refused before any work, and before anything is made on the Hub."""

import shutil

import pytest
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    tiny("llama").save_pretrained(folder / "m", max_shard_size="40KB")
    (folder / "m" / "hf_farms_report.json").write_text("{}")
    with LocalHub() as hub, HubClient(hub, folder) as client:
        client.folder = folder / "m"
        yield client


@pytest.fixture
def hub(client):
    hub = client.hub
    hub.repos.clear()
    hub.roles.clear()
    hub.scopes.clear()
    hub.orgs.clear()
    hub.faults.clear()
    hub.requests.clear()
    return hub


FOREIGN = {".gitattributes": b"", "config.json": b"{}", "pytorch_model.bin": b"x", "tokenizer.json": b"{}"}


def preflight(client, name="m", **options):
    return client("preflight", name, **options)


def test_a_read_only_token_is_refused_by_its_name(client, hub):
    hub.roles["hf_good"] = "read"
    done = preflight(client)
    assert "a push must have a token that may write, got the read-only token 'test' of ada." in done["message"]
    assert hub.requests == ["GET /api/whoami-v2"]


def test_a_fine_grained_token_may_write_where_its_scopes_say(client, hub):
    hub.roles["hf_good"] = "fineGrained"
    hub.scopes["hf_good"] = {"my-org"}
    hub.orgs["my-org"] = {"ada"}
    assert preflight(client, repo_id="my-org/m")["result"]["repo_id"] == "my-org/m"
    assert "the token may not write to 'ada/m'" in preflight(client)["message"]
    hub.add("ada/there", {})
    assert "the token may not write to 'ada/there'" in preflight(client, "there")["message"]
    assert set(hub.repos) == {"my-org/m", "ada/there"}


def test_nothing_is_made_without_create(client, hub):
    plan = preflight(client, create=False)["result"]
    assert (plan["repo_id"], plan["exists"], plan["private"]) == ("ada/m", False, None)
    assert not hub.repos
    assert not [request for request in hub.requests if request.startswith("POST")]


@pytest.mark.parametrize("name", ["a b", "-x", "a--b", "x" * 97, "m.git"])
def test_names_that_no_repository_can_have(client, hub, name):
    done = preflight(client, name)
    assert done["error"] == "ValueError"
    assert f"repo_id must be a valid repository name, got 'ada/{name}'. Choose one with `repo_id`." in done["message"]
    assert not hub.repos


def test_files_of_somebody_else_are_not_mixed_with_ours(client, hub):
    hub.add("ada/m", FOREIGN)
    done = preflight(client)
    assert (
        "repository must be new or one that hf-farms wrote, got 'ada/m' with other files (config.json, "
        "pytorch_model.bin, tokenizer.json)." in done["message"]
    )
    assert "`push(overwrite=True)`" in done["hint"]
    assert preflight(client, allow_foreign_files=True)["result"]["exists"]
    # The owner of the repository decides what becomes of a pull request.
    assert preflight(client, create_pr=True)["result"]["create_pr"]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".gitattributes": b"", "README.md": b"# To come"},
        FOREIGN | {"hf_farms_report.json": b"{}"},
    ],
)
def test_new_repositories_and_our_own_are_taken(client, hub, files):
    hub.add("ada/m", files)
    assert preflight(client)["result"]["exists"]


def test_a_push_that_stopped_half_way_is_known_by_its_files(client, hub):
    mine = contents(client.folder)
    half = {name: mine[name] for name in sorted(mine) if name.endswith(".safetensors")}
    hub.add("ada/m", half | {".gitattributes": b""})
    assert "with other files" in preflight(client)["message"]
    plan = client("plan_push", client.folder, "ada/m")
    assert "error" in plan  # the report in this folder is none
    assert "report" in plan["message"]
    (client.folder / "hf_farms_report.json").rename(client.folder.parent / "aside.json")
    try:
        assert client("plan_push", client.folder, "ada/m")["result"]["exists"]
        hub.repos["ada/m"].files["config.json"] = b"{}"
        assert "with other files" in client("plan_push", client.folder, "ada/m")["message"]
    finally:
        (client.folder.parent / "aside.json").rename(client.folder / "hf_farms_report.json")


def test_visibility_is_what_was_asked_for_or_refused(client, hub):
    assert preflight(client, private=True)["result"]["private"] is True
    assert hub.repos["ada/m"].private
    hub.add("ada/open", {})
    done = preflight(client, "open", private=True)
    assert (
        "repository must be private, as `private=True` was given, got 'ada/open', which is public." in done["message"]
    )
    hub.add("ada/closed", {}, private=True)
    assert preflight(client, "closed", private=False)["result"]["private"] is True


def test_a_branch_is_made_where_it_is_missing(client, hub):
    hub.add("ada/m", {"README.md": b"# Here"})
    assert preflight(client, revision="v2")["result"]["revision"] == "v2"
    assert hub.files("ada/m", "v2") == {"README.md": b"# Here"}
    assert preflight(client, revision="v2")["result"]["revision"] == "v2"
    done = preflight(client, revision="v2", create_pr=True)
    assert "revision must not be given with create_pr, got 'v2'" in done["message"]


def test_datasets_are_looked_for(client, hub):
    hub.datasets.add("ada/texts")
    assert client("check_dataset", "ada/texts")["result"] is None
    assert client("check_dataset", "speeches")["result"] is None
    done = client("check_dataset", "ada/nothing")
    assert done["error"] == "DataError"
    assert "text must be a file or a dataset on the Hub, got 'ada/nothing', which is neither." in done["message"]


def test_sizes_of_models(client, hub):
    size = sum(path.stat().st_size for path in client.folder.glob("*.safetensors"))
    assert client("weights_size", client.folder)["result"] == size
    hub.add("meta/tiny", {**contents(client.folder), "pytorch_model.bin": b"x" * 9, "original/model.safetensors": b"y"})
    assert client("weights_size", "meta/tiny")["result"] == size
    hub.add("meta/old", {"pytorch_model-00001-of-00001.bin": b"x" * 9, "config.json": b""})
    assert client("weights_size", "meta/old")["result"] == 9
    hub.add("meta/original", {"consolidated.00.pth": b"x" * 7})
    assert client("weights_size", "meta/original")["result"] == 7


def test_a_plan_is_all_that_a_push_needs(client, hub, tmp_path):
    without_report = shutil.ignore_patterns("hf_farms_report.json")
    folder = shutil.copytree(client.folder, tmp_path / "planned", ignore=without_report)
    plan = client("push_as_planned", folder, "ada/planned")
    assert plan.get("result") == f"{hub.endpoint}/ada/planned", plan
    assert sum("whoami" in request for request in hub.requests) == 1
    for option in ({"private": True}, {"revision": "v2"}, {"create_pr": True}, {"overwrite": True}):
        done = client("push_as_planned", folder, "ada/planned", **option)
        assert done["error"] == "ValueError"
        assert f"{next(iter(option))} must be left out with a plan" in done["message"]
