"""A checkpoint read from disk gives the weights that transformers loads from it."""

import json
import shutil

import pytest
import torch
import transformers
from families import FAMILIES, family_model
from safetensors.torch import load_file, save_file

from hf_farms.blocks import ModelBlockSource, StoredBlockReader, TensorFiles
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.opening import open_model
from hf_farms.spectra.analysis import analyze

pytestmark = pytest.mark.filterwarnings(r"ignore:\d+ of \d+ layers are smaller than windows")


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_reads_the_same_from_disk(name, tmp_path):
    model = family_model(name)
    source = ModelBlockSource(model)
    stored = open_model(save(model, tmp_path, max_shard_size="20KB"))
    assert isinstance(stored, StoredBlockReader)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert [stored.metadata(i) for i in range(len(stored))] == [source.metadata(i) for i in range(len(source))]
    pairs = [
        pair
        for index in range(len(source))
        for pair in zip(stored.open(index).layers, source.open(index).layers, strict=True)
    ]
    for theirs, ours in [*pairs, *zip(stored.outside, source.outside, strict=True)]:
        assert theirs.metadata == ours.metadata
        assert torch.equal(theirs.read(), ours.read()), theirs.name


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "t5"])
def test_the_report_of_a_folder_equals_that_of_the_model(name, tmp_path):
    model = family_model(name)
    in_memory = analyze(model, outside=True)
    on_disk = analyze(save(model, tmp_path), outside=True)
    assert on_disk.model == str(tmp_path)
    assert on_disk.model_type == in_memory.model_type
    assert (on_disk.blocks, on_disk.outside, on_disk.notes) == (in_memory.blocks, in_memory.outside, in_memory.notes)


def test_mixtral_lies_on_disk_expert_by_expert_and_only_one_is_read(tmp_path, monkeypatch):
    stored = open_model(save(family_model("mixtral"), tmp_path))
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in names
    seen = []
    read = TensorFiles.read
    monkeypatch.setattr(TensorFiles, "read", lambda self, name: seen.append(name) or read(self, name))
    layers = {layer.name: layer for layer in stored.open(0).layers}
    layers["model.layers.0.mlp.experts.2.up"].read()
    assert seen == [f"model.layers.0.block_sparse_moe.experts.2.{w}.weight" for w in ("w1", "w3")]


def test_experts_in_one_tensor_are_read_by_slice(tmp_path, monkeypatch):
    stored = open_model(save(family_model("gpt_oss"), tmp_path))
    monkeypatch.setattr(TensorFiles, "read", lambda self, name: pytest.fail(f"read all of {name}"))
    layer = next(layer for layer in stored.open(1).layers if layer.name.endswith("experts.3.up"))
    assert layer.read().shape == (48, 32)


def test_a_base_model_and_a_model_with_head_open_each_others_files(tmp_path):
    model = family_model("llama")
    save(model.model, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match=r"every weight, got 1 missing, first lm_head\.weight"):
        open_model(tmp_path / "base")
    save(model, tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    with pytest.warns(HfFarmsWarning, match=r"LlamaModel does not have 1 weight of .*: lm_head\.weight\.$"):
        stored = open_model(tmp_path / "whole")
    assert torch.equal(stored.open(0).layers[0].read(), model.model.layers[0].self_attn.q_proj.weight)


def test_names_of_pickled_and_old_checkpoints(tmp_path):
    """Gamma and beta, and a base model's names without prefix, as files from 2018 have them."""
    model = family_model("bert")
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): t for name, t in tensors.items()}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    layer = open_model(tmp_path).open(1).layers[0]
    assert torch.equal(layer.read(), model.bert.encoder.layer[1].attention.self.query.weight)


def test_pickled_weights_are_refused_unless_allowed(tmp_path):
    model = family_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights must be safetensors, got pickled ones") as refused:
        open_model(tmp_path)
    assert "`allow_pickle=True`" in refused.value.hint
    stored = open_model(tmp_path, allow_pickle=True)
    assert torch.equal(stored.open(0).layers[0].read(), model.model.layers[0].self_attn.q_proj.weight)


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_allowed_pickles_still_run_no_code(tmp_path, capsys):
    model = family_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"must contain only tensors, got other objects or damaged data in pytorch_model\.bin"
    ):
        open_model(tmp_path, allow_pickle=True)
    assert capsys.readouterr().out == ""


@pytest.fixture
def sharded(tmp_path):
    return save(family_model("llama"), tmp_path, max_shard_size="20KB")


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"checkpoint must be complete, got .* without {shard.name}"):
        open_model(sharded)


@pytest.mark.parametrize("text", ["", '{"weight_map": {"a', "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"JSON with a weight_map, got a damaged model\.safetensors\.index\.json"):
        open_model(sharded)


@pytest.mark.parametrize("keep", [0, 6, 200, -1], ids=["empty", "in the length", "in the header", "in the data"])
def test_a_truncated_shard_is_named_before_any_work(sharded, keep):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"got a truncated or corrupted {shard.name}"):
        open_model(sharded)


def test_a_shard_of_garbage_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.write_bytes(b"\xff" * 5000)
    with pytest.raises(ModelError, match=rf"got a truncated or corrupted {shard.name}"):
        open_model(sharded)


def test_a_weight_that_no_shard_holds_is_named(tmp_path):
    save(family_model("llama"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"got 1 missing, first model\.layers\.1\.mlp\.up_proj\.weight"):
        open_model(tmp_path)


def test_a_weight_of_another_shape_is_named(tmp_path):
    save(family_model("llama"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(47, 32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"\(48, 32\), got \(47, 32\) in model\.layers\.1\.mlp\.up_proj\.weight of"):
        analyze(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    family_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"must have weights .*without"):
        open_model(tmp_path)


def test_layers_on_disk_cannot_be_written(tmp_path):
    layer = open_model(save(family_model("llama"), tmp_path)).open(0).layers[0]
    with pytest.raises(ModelError, match=r"must not be modified, got a write to model\.layers\.0\.self_attn\.q_proj"):
        layer.write_(layer.read())


def test_a_quantization_that_cannot_be_undone_is_refused(tmp_path):
    save(family_model("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"weights must be plain or quantized by one of .*, got gptq") as refused:
        open_model(tmp_path)
    assert refused.value.hint == "Name the unquantized model."


def test_weights_quantized_to_fp8_are_dequantized_by_transformers(tmp_path):
    """Blocks of 16 x 16 with a scale each, as transformers' own loader reads them."""
    torch.manual_seed(0)
    model = family_model("llama")
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stored = {}
    for name, weight in tensors.items():
        if ".layers." not in name or weight.ndim != 2:
            stored[name] = weight
            continue
        tiles = weight.unflatten(0, (-1, 16)).unflatten(2, (-1, 16))
        scale = tiles.abs().amax(dim=(1, 3)) / 448
        stored[name] = (tiles / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = open_model(tmp_path)
    layer = source.open(1).layers[5]
    expected = model.model.layers[1].mlp.up_proj.weight
    assert torch.allclose(layer.read().float(), expected, atol=0.02)
    assert not torch.equal(layer.read().float(), expected)


def test_a_hub_cache_is_read_too(tmp_path, monkeypatch):
    """The layout of the cache: files are links into a folder of blobs."""
    save(family_model("llama"), tmp_path / "files")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir(), snapshot.mkdir()
    for number, file in enumerate((tmp_path / "files").iterdir()):
        shutil.move(file, blobs / f"{number}")
        (snapshot / file.name).symlink_to(blobs / f"{number}")
    assert analyze(snapshot).blocks == analyze(family_model("llama")).blocks


def test_transformers_agrees_on_what_the_files_hold(tmp_path):
    """The reader against `from_pretrained`, not against the model that was saved."""
    save(family_model("qwen3_moe"), tmp_path)
    loaded = ModelBlockSource(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    stored = open_model(tmp_path)
    for index in range(2):
        for ours, theirs in zip(stored.open(index).layers, loaded.open(index).layers, strict=True):
            assert torch.equal(ours.read(), theirs.read())
