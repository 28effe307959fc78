"""What a folder says of itself, and what the Hub says of the model that it was made from."""

import dataclasses

import pytest
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny

from hf_farms import PruneConfig, prune
from hf_farms.errors import OutputError
from hf_farms.hub import check_folder
from hf_farms.reports import REPORT_NAME, BaseModelRecord


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path, text):
    tiny("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(OutputError, match=r"got 'model\.safetensors\.index\.json' missing or damaged"):
        check_folder(tmp_path)


def test_the_folder_that_one_is_in(tmp_path, monkeypatch):
    tiny("llama").save_pretrained(tmp_path / "m")
    monkeypatch.chdir(tmp_path / "m")
    assert (check_folder(".") / "config.json").is_file()
    (tmp_path / "m").rename(tmp_path / "m.partial")
    with pytest.raises(OutputError, match="folder must be finished"):
        check_folder(".")


def test_a_base_model_that_was_not_known_to_be_gated_is_asked_for_at_the_push(tmp_path):
    """With the Hub switched off nobody knows, and conditions may be new."""
    model = tiny("llama")
    report = prune(model, PruneConfig(method="magnitude", allocation="uniform")).report
    model.save_pretrained(tmp_path / "pruned")
    report = dataclasses.replace(report, model="meta/m", base=BaseModelRecord(repo_id="meta/m"))
    report.save(tmp_path / "pruned" / REPORT_NAME)
    with LocalHub() as hub, HubClient(hub, tmp_path) as client:
        hub.add("meta/m", {}, gated=True)
        client("push", tmp_path / "pruned", "mine")
        assert hub.repos["ada/mine"].private
        assert "error" not in client("push", tmp_path / "pruned", "open", private=False)
        assert not hub.repos["ada/open"].private
        hub.repos["meta/m"].gated = False
        client("push", tmp_path / "pruned", "too")
        assert not hub.repos["ada/too"].private
        del hub.repos["meta/m"]
        assert "error" not in client("push", tmp_path / "pruned", "gone")


@pytest.fixture
def two(tmp_path):
    """A client and its folder `m`, of two shards, without a report."""
    tiny("llama").save_pretrained(tmp_path / "m", max_shard_size="100KB")
    with LocalHub() as hub, HubClient(hub, tmp_path) as client:
        yield client, tmp_path / "m"


def test_a_push_that_stopped_is_known_though_its_card_was_written_again(two):
    client, folder = two
    (folder / "README.md").write_text("# New")
    half = {"model-00001-of-00002.safetensors", "README.md", "config.json"}
    there = {name: data for name, data in contents(folder).items() if name in half}
    client.hub.add("ada/m", there | {"README.md": b"# Old"})
    assert "error" not in client("push", folder, "ada/m")
    assert client.hub.files("ada/m") == contents(folder)


def test_a_new_branch_begins_with_what_main_has(two):
    client, folder = two
    client.hub.add("ada/m", {REPORT_NAME: b"{}", "model.safetensors": b"old"})
    assert "error" not in client("push", folder, "ada/m", revision="next")
    # Else it would be loaded in place of the shards.
    assert "model.safetensors" not in client.hub.files("ada/m", "next")
    assert client.hub.files("ada/m")["model.safetensors"] == b"old"
    client.hub.add("ada/theirs", {"config.json": b"{}", "notes.txt": b"mine"})
    assert "with other files" in client("push", folder, "ada/theirs", revision="next")["message"]


def test_a_pull_request_that_is_continued_loses_the_weights_of_its_earlier_model(two):
    client, folder = two
    client.hub.add("bob/m", {"README.md": b"# Theirs"})
    first = client("push", folder, "bob/m", create_pr=True)
    client.hub.files("bob/m", "refs/pr/1")["pytorch_model.bin"] = b"old"
    assert client("push", folder, "bob/m", create_pr=True)["result"] == first["result"]
    assert client.hub.files("bob/m", "refs/pr/1").keys() == contents(folder).keys() | {"README.md"}
