"""The license of the dense model: asked of a Hub on this machine, by the unmodified client in processes of its own."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from hub_client import environment
from local_hub import LocalHub
from processes import finished

from hf_farms.hub.base_model import read_base_model
from hf_farms.hub.license_files import copy_license_files
from hf_farms.licences import duties_of, generated_name
from hf_farms.loading.names import ModelRef
from hf_farms.reports import BaseModelRecord

# Describe a model, fetch its license files into a folder, print the record or the error.
DESCRIBE = """
import dataclasses, json, pathlib, sys, warnings
from hf_farms.hub.license_files import copy_license_files
from hf_farms.hub.base_model import fetch_base_model
from hf_farms.errors import HfFarmsError
try:
    with warnings.catch_warnings(record=True) as said:
        base = fetch_base_model(sys.argv[1], revision=sys.argv[2] or None)
    said = [str(warning.message) for warning in said]
    written = copy_license_files(base, pathlib.Path(sys.argv[3]))
    print(json.dumps(dataclasses.asdict(base) | {"written": written, "said": said, "torch": "torch" in sys.modules}))
except HfFarmsError as error:
    print(type(error).__name__, error, "|", error.hint)
"""
NO_CARD = (
    "The card of 'meta/m' is not on this machine and the Hub is switched off (HF_HUB_OFFLINE): "
    "its license and license files are not known. Run `hf download meta/m` before."
)
CARD = b"""---
license: llama3.2
language:
- en
- de
pipeline_tag: text-generation
---
# A model
"""
FILES = {
    "config.json": b"{}",
    "README.md": CARD,
    "LICENSE.txt": b"terms",
    "USE_POLICY.md": b"policy",
    "a/LICENSE": b"",
    "LICENSE-others/MIT.txt": b"",
}


@pytest.fixture
def hub():
    with LocalHub() as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    (tmp_path / "out").mkdir()

    def run(model, revision="", *, code=DESCRIBE, token="hf_good", **variables):
        variables = environment(hub.endpoint, tmp_path / "home", token=token, **variables)
        command = [sys.executable, "-c", code, model, revision, tmp_path / "out"]
        done = finished(command, env=variables, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_what_the_hub_says_is_recorded_and_license_files_are_carried(hub, client, tmp_path):
    hub.add("meta/Llama-3.2-1B", FILES)
    found = json.loads(client("meta/Llama-3.2-1B"))
    assert found == {
        "repo_id": "meta/Llama-3.2-1B",
        "revision": hub.repos["meta/Llama-3.2-1B"].sha,
        "license": "llama3.2",
        "license_name": None,
        "license_link": None,
        "gated": False,
        "languages": ["en", "de"],
        "pipeline_tag": "text-generation",
        "files": ["LICENSE.txt", "USE_POLICY.md"],
        "card_read": True,
        "local": False,
        "written": ["LICENSE.txt", "USE_POLICY.md", "NOTICE"],
        "said": [],
        "torch": False,
    }
    out = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()}
    assert out == {
        "LICENSE.txt": "terms",
        "USE_POLICY.md": "policy",
        "NOTICE": "Llama 3.2 is licensed under the Llama 3.2 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.\n",
    }
    assert sum("/api/" in request for request in hub.requests) == 1


def test_a_card_that_says_nothing_and_one_that_is_strange(hub, client):
    hub.add("a/none", {"config.json": b"{}"})
    assert json.loads(client("a/none"))["license"] is None
    hub.add("a/lists", {"README.md": b"---\nlicense: [mit, other]\nlanguage: en\nmodel-index: 3\n---\n"})
    found = json.loads(client("a/lists"))
    assert (found["license"], found["languages"], found["written"]) == ("mit", ["en"], [])


@pytest.mark.parametrize("request_", ["GET /api/models/meta/busy", "/meta/busy/resolve/"])
def test_a_hub_that_is_busy_is_asked_again(request_, hub, client):
    hub.add("meta/busy", FILES)
    hub.fault(request_, status=503, retry_after=0, times=2)
    assert json.loads(client("meta/busy"))["written"] == ["LICENSE.txt", "USE_POLICY.md", "NOTICE"]


def test_gated_with_access_and_without(hub, client, tmp_path):
    hub.add("ada/gated", FILES, gated=True)
    hub.add("meta/gated", FILES, gated=True)
    assert json.loads(client("ada/gated"))["gated"] is True
    said = client("meta/gated")
    assert said.startswith("ModelError 'meta/gated' is gated, and access was not granted to this token.")
    assert f"{hub.endpoint}/meta/gated" in said
    assert not any("GET /meta" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("model", "revision", "token", "answer"),
    [
        ("a/nothing", "", "hf_good", "ModelError 'a/nothing' is neither a folder nor a repository on the Hub."),
        ("a/nothing", "", None, "ModelError 'a/nothing' is neither a folder nor a repository on the Hub or is private"),
        ("a/there", "v9", "hf_good", "ModelError revision must exist, got one that 'a/there' does not have"),
        ("a/there", "", "hf_bad", "HubError the Hub at {} did not accept the token"),
        ("./a/b", "", "hf_good", "ModelError model must be a hub id or an existing folder, got './a/b'"),
    ],
)
def test_refusals(hub, client, model, revision, token, answer):
    hub.add("a/there", FILES)
    said = client(model, revision, token=token)
    assert said.startswith(answer.format(hub.endpoint))
    assert "hf_bad" not in said


def test_a_dead_endpoint_is_named_without_retries(hub, client):
    said = client("a/there", HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("HubError the Hub at http://127.0.0.1:9 could not be reached")
    hub.add("a/there", FILES)
    client("a/there", code="import sys, huggingface_hub as h; h.hf_hub_download(sys.argv[1], 'config.json')")
    assert "HF_HUB_OFFLINE=1" in client("a/there", HF_ENDPOINT="http://127.0.0.1:9")


def test_with_the_hub_switched_off_the_cache_answers(hub, client, tmp_path):
    assert client("meta/m", HF_HUB_OFFLINE="1").startswith("ModelError 'meta/m' is not on this machine")
    hub.add("meta/m", FILES)
    client("meta/m", code="import sys, huggingface_hub as h; h.hf_hub_download(sys.argv[1], 'config.json')")
    found = json.loads(client("meta/m", HF_HUB_OFFLINE="1"))
    assert (found["license"], found["files"], found["revision"]) == (None, [], hub.repos["meta/m"].sha)
    assert (found["card_read"], found["said"]) == (False, [NO_CARD])
    client("meta/m", code="import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1])")
    found = json.loads(client("meta/m", HF_HUB_OFFLINE="1"))
    assert (found["license"], found["files"]) == ("llama3.2", ["LICENSE.txt", "USE_POLICY.md"])
    assert (found["card_read"], found["said"]) == (True, [])
    assert (tmp_path / "out" / "LICENSE.txt").read_bytes() == b"terms"


def test_with_the_hub_switched_off_a_repository_without_a_card_is_known_to_have_none(hub, client, tmp_path):
    hub.add("a/none", {"config.json": b"{}"})
    client("a/none", code="import sys, huggingface_hub as h; h.hf_hub_download(sys.argv[1], 'config.json')")
    assert json.loads(client("a/none", HF_HUB_OFFLINE="1"))["card_read"] is False
    # What the client leaves behind when the Hub has said that a file is not there.
    missing = tmp_path / "home" / "hub" / "models--a--none" / ".no_exist" / hub.repos["a/none"].sha / "README.md"
    missing.parent.mkdir(parents=True)
    missing.touch()
    found = json.loads(client("a/none", HF_HUB_OFFLINE="1"))
    assert (found["license"], found["card_read"], found["said"]) == (None, True, [])


def test_what_a_folder_says_of_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_base_model(tmp_path) is None
    (tmp_path / "LICENSE").write_text("terms")
    record = BaseModelRecord(repo_id=tmp_path.name, files=("LICENSE",), card_read=False, local=True)
    assert read_base_model(Path(".")) == record
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert read_base_model(tmp_path) == record
    (tmp_path / "README.md").write_bytes(CARD)
    assert read_base_model(tmp_path) == dataclasses.replace(
        record, license="llama3.2", languages=("en", "de"), pipeline_tag="text-generation", card_read=True
    )


def test_demo_and_folders_have_no_record_but_carry_their_license(tmp_path):
    assert ModelRef.parse("demo").base_model is None
    assert ModelRef.parse(tmp_path).base_model is None
    dense, out = tmp_path / "dense", tmp_path / "out"
    dense.mkdir()
    out.mkdir()
    for name, text in FILES.items():
        if "/" not in name:
            (dense / name).write_bytes(text)
    (dense / "NOTICE.txt").write_text("theirs", encoding="utf-8")
    (dense / "LICENSE-others").mkdir()
    assert copy_license_files(dense, out) == ("LICENSE.txt", "NOTICE.txt", "USE_POLICY.md")
    assert (out / "NOTICE.txt").read_text(encoding="utf-8") == "theirs"


@pytest.mark.parametrize(
    ("repo_id", "license", "license_name", "folder", "name", "display"),
    [
        ("meta-llama/Llama-2-7b", "llama2", None, "Llama-2-7b-wanda", "Llama-2-7b-wanda", None),
        ("x/mine", "llama2", None, "mine-wanda", "mine-wanda", None),
        ("m/Meta-Llama-3-8B", "llama3", None, "Meta-Llama-3-8B-w", "Llama-3-8B-w", "Built with Meta Llama 3"),
        ("x/Hermes-8B", "llama3", None, "Hermes-8B-w", "Llama-3-Hermes-8B-w", "Built with Meta Llama 3"),
        ("m/Meta-Llama-3.1-8B", "llama3.1", None, "Meta-Llama-3.1-8B-w", "Llama-3.1-8B-w", "Built with Llama"),
        ("m/Llama-3.3-70B", "llama3.3", None, "llama-small", "Llama-small", "Built with Llama"),
        ("x/Hermes", "llama3.2", None, "Hermes-w", "Llama-Hermes-w", "Built with Llama"),
        ("x/Scout", "other", "llama4", "Scout-w", "Llama-Scout-w", "Built with Llama"),
        ("x/my-Llama-3.1-8B", None, None, "mine", "Llama-mine", "Built with Llama"),
        ("x/open_llama_3b", None, None, "open_llama_3b-w", "open_llama_3b-w", None),
        ("x/TinyLlama-1.1B", "apache-2.0", None, "TinyLlama-w", "TinyLlama-w", None),
        ("x/Llama-3-distilled", "mit", None, "d", "d", None),
        ("google/gemma-3-1b", "gemma", None, "gemma-3-1b-w", "gemma-3-1b-w", None),
    ],
)
def test_names_and_words_that_a_license_asks_for(repo_id, license, license_name, folder, name, display):
    base = BaseModelRecord(repo_id=repo_id, license=license, license_name=license_name)
    assert generated_name(base, folder) == name
    duties = duties_of(base)
    assert (duties.display if duties else None) == display
    assert generated_name(None, folder) == folder


@pytest.mark.parametrize("license", ["llama2", "llama3", "gemma"])
def test_a_notice_is_written_where_the_license_asks_for_one(license, tmp_path):
    base = BaseModelRecord(repo_id="x/y", license=license)
    assert copy_license_files(base, tmp_path) == ("NOTICE",)
    assert license[:-1] in (tmp_path / "NOTICE").read_text(encoding="utf-8").lower()
    assert copy_license_files(BaseModelRecord(repo_id="x/y", license="mit"), tmp_path) == ()


def test_a_readme_without_front_matter_is_no_reason_for_a_remark(tmp_path, caplog):
    (tmp_path / "README.md").write_text("# A model\n")
    (tmp_path / "LICENSE").write_text("terms")
    with caplog.at_level("WARNING"):
        read_base_model(tmp_path)
    assert not caplog.records


def test_aliases_in_a_card_are_not_multiplied(tmp_path):
    """A few lines of YAML that would be larger than any memory, if all of the card were copied."""
    rows = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    rows += [f"{c}: &{c} [" + ",".join([f"*{p}"] * 9) + "]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)]
    (tmp_path / "README.md").write_text("\n".join(["---", *rows, "license: mit", "language: *i", "---", ""]))
    (tmp_path / "LICENSE").touch()
    record = read_base_model(tmp_path)
    assert (record.license, record.languages, record.files) == ("mit", (), ("LICENSE",))
