"""An index is a file of others: it may name the weights beside it and nothing else."""

import json
import shutil

import pytest
from hf_farms_cli.app import app
from models import tiny
from typer.testing import CliRunner

from hf_farms import hub
from hf_farms.errors import HfFarmsError, ModelError, OutputError
from hf_farms.files.shards import shard_names
from hf_farms.loading.files import weight_files
from hf_farms.loading.opening import load_model, open_model

INDEX = "model.safetensors.index.json"
OUTSIDE = [
    "../outside.safetensors",
    "/outside.safetensors",
    "//host/outside.safetensors",
    "sub/../../outside.safetensors",
    "./../outside.safetensors",
    "..\\outside.safetensors",
    "C:\\outside.safetensors",
    "c:/outside.safetensors",
    "sub\\..\\outside.safetensors",
    "",
    " ",
    "..",
    "a\nb.safetensors",
    "a\0.safetensors",
    "/dev/zero",
    "weights.bin",
    "config.json",
]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "dense"
    tiny("llama").save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture
def sharded(dense, tmp_path):
    """A model in shards, of which each test names one otherwise; what it may find outside is a good shard."""
    shutil.copytree(dense, tmp_path / "in" / "model")
    folder = tmp_path / "in" / "model"
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shutil.copy(shard, tmp_path / "in" / "outside.safetensors")
    return folder


def rename(folder, name, index=INDEX):
    found = json.loads((folder / INDEX).read_text())
    last = sorted(set(found["weight_map"].values()))[-1]
    found["weight_map"] = {key: name if file == last else file for key, file in found["weight_map"].items()}
    (folder / INDEX).unlink()
    (folder / index).write_text(json.dumps(found))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_is_none_of_a_file_beside_it(sharded, name):
    rename(sharded, name)
    match = (
        r"^shards must be \.safetensors files in the folder of the model, got .* in model\.safetensors\.index\.json\.$"
    )
    with pytest.raises(ModelError, match=match):
        open_model(sharded)
    for stream in (False, True):
        with pytest.raises(ModelError, match=match):
            load_model(str(sharded), stream=stream, tokenizer=False)
    with pytest.raises(OutputError, match=match):
        hub.check_folder(sharded)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": null}}', "[" * 100_000])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(ModelError, match=r"^index of the shards must be JSON with a weight_map, got a damaged"):
        shard_names(sharded / INDEX)
    with pytest.raises(OutputError, match=r"got 'model\.safetensors\.index\.json' missing or damaged"):
        hub.check_folder(sharded)


def test_an_index_of_pickles_names_pickles_beside_it(sharded):
    rename(sharded, "../outside.bin", "pytorch_model.bin.index.json")
    with pytest.raises(ModelError, match=r"^shards must be \.bin or \.pt or \.pth files in the folder"):
        open_model(sharded, allow_pickle=True)
    rename_back = json.loads((sharded / "pytorch_model.bin.index.json").read_text())
    assert "../outside.bin" in rename_back["weight_map"].values()


def test_an_index_that_leads_out_is_refused_beside_whole_weights_too(sharded, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "whole")
    rename(sharded, "../outside.safetensors")
    shutil.copy(sharded / INDEX, tmp_path / "whole")
    with pytest.raises(ModelError, match="shards must be"):
        weight_files("whole", str(tmp_path / "whole"), None, allow_pickle=False)
    # A stale one is not read, as transformers does not read it.
    (tmp_path / "whole" / INDEX).write_text("{")
    assert [path.name for path in weight_files("w", str(tmp_path / "whole"), None, allow_pickle=False)] == [
        "model.safetensors"
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_shard_that_is_missing(sharded, stream):
    sorted(sharded.glob("*.safetensors"))[0].unlink()
    for use in (lambda: load_model(str(sharded), stream=stream, tokenizer=False), lambda: open_model(sharded)):
        with pytest.raises(ModelError, match=r"^checkpoint must be complete, got .* without model-00001-of"):
            use()
    with pytest.raises(OutputError, match="missing or damaged"):
        hub.check_folder(sharded)


def test_a_shard_in_a_folder_below_is_read(sharded):
    (sharded / "sub").mkdir()
    last = sorted(sharded.glob("*.safetensors"))[-1]
    last.rename(sharded / "sub" / last.name)
    rename(sharded, f"sub/{last.name}")
    assert len(open_model(sharded)) == 3
    assert f"sub/{last.name}" in hub.read_contents(sharded).files


@pytest.mark.parametrize(
    "command",
    [
        ("analyze",),
        ("prune", "--method", "magnitude", "--evaluation", "none", "--no-stream"),
        ("prune", "--method", "magnitude", "--evaluation", "none", "--stream"),
        ("eval", "--metrics", "sparsity"),
    ],
)
def test_every_command_refuses_in_one_sentence(sharded, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rename(sharded, str(tmp_path / "in" / "outside.safetensors"))
    done = CliRunner().invoke(app, [command[0], str(sharded), *command[1:]])
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["Error", "Hint"]
    assert "Error: shards must be .safetensors files in the folder of the model, got" in done.stderr


def test_a_shard_without_the_tensors_that_the_index_has_in_it(sharded):
    first, *_ = sorted(path.name for path in sharded.glob("*.safetensors"))
    found = json.loads((sharded / INDEX).read_text())
    found["weight_map"] = dict.fromkeys(found["weight_map"], first)
    (sharded / INDEX).write_text(json.dumps(found))
    with pytest.raises(OutputError, match=rf"^folder must hold all its weights, got '{first}' without '.*', which"):
        hub.check_folder(sharded)


def test_shards_of_which_some_are_in_no_index(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    found = json.loads((sharded / INDEX).read_text())
    found["weight_map"] = {key: file for key, file in found["weight_map"].items() if file != shards[-1].name}
    (sharded / INDEX).write_text(json.dumps(found))
    shards[-1].unlink()
    with pytest.raises(HfFarmsError, match=rf"^{shards[-1].name} must be a file of .* to be pushed, got none"):
        hub.folders.check_publishable(sharded)
    (sharded / INDEX).unlink()
    with pytest.raises(HfFarmsError, match="must be a file of"):
        hub.folders.check_publishable(sharded)
