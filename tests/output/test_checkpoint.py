import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from models import FAMILIES, tiny, tiny_opt
from safetensors import safe_open

from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import ModelError, OutputError
from hf_farms.loading.opening import load_model
from hf_farms.output.checkpoint import CheckpointWriter


def write(model, folder):
    folder.mkdir()
    source = ModelBlockSource(model)
    writer = CheckpointWriter(model, folder, len(source), records=folder / "records")
    source.attach(writer)
    for index in range(len(source)):
        source.commit(index, {"index": index})
    writer.finish(None, [source.metadata(index).name for index in range(len(source))])
    shutil.rmtree(folder / "records")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_written_model_loads_with_the_same_logits(family, tied, dtype, tmp_path):
    tiny(family, tie_word_embeddings=tied, dtype=dtype).save_pretrained(tmp_path / "dense")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    write(model, tmp_path / "out")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(30)[None]
    assert back.dtype == dtype
    assert torch.equal(back(ids).logits, model(ids).logits)


def test_an_architecture_with_other_names_inside_loads_too(tmp_path):
    model = tiny_opt()
    write(model, tmp_path / "out")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(30)[None]
    assert torch.equal(back(ids).logits, model(ids).logits)


def test_every_block_has_its_own_shard_and_the_index_is_right(llama, tmp_path):
    write(llama, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == sorted(set(index["weight_map"].values()))
    size = 0
    for file in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / file, "pt") as shard:
            assert set(shard.keys()) == {name for name, where in index["weight_map"].items() if where == file}
            size += sum(shard.get_tensor(name).nbytes for name in shard.keys())  # noqa: SIM118 - no mapping
    assert index["metadata"]["total_size"] == size


def test_the_demo_is_loaded_with_its_tokenizer():
    loaded = load_model("demo")
    assert loaded.model.config._name_or_path == "demo"
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.tokenizer("We the people")["input_ids"][0] == loaded.tokenizer.bos_token_id


def test_a_folder_without_a_tokenizer(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), tokenizer=False).tokenizer is None
    with pytest.raises(ModelError, match=r"model must have a tokenizer, got .* without one"):
        load_model(str(tmp_path))


def test_the_architecture_of_the_checkpoint_is_used(tmp_path):
    from models import tiny_bert

    tiny_bert().save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path), tokenizer=False).model).__name__ == "BertForMaskedLM"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p.mkdir(), r"model folder must have a config\.json"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{}")), r"model folder must have weights"),
        (lambda p: None, "model must be a hub id or an existing folder"),
    ],
)
def test_folders_that_hold_no_model(tmp_path, prepare, message):
    prepare(tmp_path / "m")
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path / "m"))


def test_a_truncated_shard_is_refused(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"got a truncated or corrupted model\.safetensors"):
        load_model(str(tmp_path), tokenizer=False)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype must be auto, float32, bfloat16 or float16, got 'half-ish'"):
        load_model("demo", dtype="half-ish")


@pytest.mark.parametrize(
    ("size", "left", "message"),
    [(400, [], "output must fit on the disk"), (2040, ["out.partial"], "the disk is full")],
)
def test_a_full_disk_leaves_only_the_partial_folder(tmp_path, size, left, message):
    """A real file system that is full after `size` kilobytes, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    probe = [unshare or "", "-rm", "true"]
    if unshare is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("a mount namespace is not to be had here")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size={size}k none "$1" && '
        '"$2" -c "from hf_farms_cli.app import main; main()" prune demo '
        '--method magnitude --evaluation none -o "$1/out"; '
        'code=$?; ls -A "$1"; exit $code'
    )
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", script, "sh", str(disk), sys.executable],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if "permission denied" in done.stderr.lower():
        pytest.skip("mounting is not permitted here")
    assert done.returncode == 1, done.stderr
    assert done.stdout.split() == left
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_blocks_of_another_writer_replace_those_of_this_one(llama, tmp_path):
    writers = {}
    for value, name in enumerate(("own", "other")):
        (tmp_path / name).mkdir()
        source = ModelBlockSource(llama)
        writers[name] = CheckpointWriter(llama, tmp_path / name, len(source), records=tmp_path / name / "records")
        source.attach(writers[name])
        for index in range(len(source)):
            with torch.no_grad():
                source.open(index).module.mlp.down_proj.weight.fill_(value)
            if name == "own" or index < 2:
                source.commit(index, {"from": name})
    # A link in the place of a shard is not followed.
    shard = tmp_path / "own" / "model-00001-of-00004.safetensors"
    kept = shard.rename(tmp_path / "kept")
    shard.symlink_to(kept)
    with pytest.raises(OutputError, match="path must be a regular file or not exist, got the link"):
        writers["own"].adopt(writers["other"])
    shard.unlink()
    writers["own"].adopt(writers["other"])
    assert [writers["own"].record(index)["from"] for index in range(3)] == ["other", "other", "own"]
    for index in range(3):
        tensors = writers["own"].tensors(index)
        weight = tensors.read(f"model.layers.{index}.mlp.down_proj.weight")
        assert float(weight.float().mean()) == (1 if index < 2 else 0)
    assert [writers["other"].record(index) for index in range(3)] == [None] * 3
