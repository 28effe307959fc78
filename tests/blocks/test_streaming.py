import os

import pytest
import torch
import transformers
from families import FAMILIES, family_model
from models import tiny
from safetensors.torch import load_file, save_file

from hf_farms.blocks import ModelBlockSource, StreamedBlockSource
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.loading.opening import load_model
from hf_farms.metrics.nll import text_nll
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.pruning.pruner import prune
from hf_farms.spectra.analysis import analyze

# Those whose blocks are one stack that is run on token ids.
DECODERS = [
    name for name in FAMILIES if name not in ("bert", "vit", "t5", "gemma3", "qwen3_vl", "resnet", "distilbert")
]


def saved(folder, model, **options):
    model.save_pretrained(folder, **options)
    return folder


def both(folder):
    """The model in memory and streamed, from the same files."""
    return (load_model(str(folder), tokenizer=False, stream=stream).source for stream in (False, True))


def ids(shape=(2, 17), seed=1):
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_have_the_weights_and_buffers_of_the_model_in_memory(family, tmp_path):
    whole, streamed = both(saved(tmp_path / "m", family_model(family)))
    assert isinstance(streamed, StreamedBlockSource)
    assert [streamed.metadata(i) for i in range(len(streamed))] == [whole.metadata(i) for i in range(len(whole))]
    for index in range(len(whole)):
        there, here = whole.open(index).module, streamed.open(index).module
        for kind in ("named_parameters", "named_buffers"):
            expected = dict(getattr(there, kind)())
            found = dict(getattr(here, kind)())
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
            assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert streamed.count_parameters() == whole.count_parameters()


@pytest.mark.parametrize("family", DECODERS)
def test_the_streamed_model_computes_the_same_bits(family, tmp_path):
    whole, streamed = both(saved(tmp_path / "m", family_model(family)))
    with torch.no_grad():
        expected = whole.model(ids()).logits
        with streamed.whole():
            assert torch.equal(streamed.model(ids()).logits, expected)
        calls = streamed.capture({"input_ids": ids()})
        hidden = calls.hidden
        for index in range(len(streamed)):
            hidden = streamed.open(index)(hidden, calls.arguments[index])
        assert torch.equal(streamed.output({"input_ids": ids()}, hidden).logits, expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perplexity_block_by_block_is_the_same_to_the_bit(tied, dtype, tmp_path, monkeypatch):
    folder = saved(tmp_path / "m", tiny("llama", tie_word_embeddings=tied, dtype=dtype))
    whole, streamed = both(folder)
    monkeypatch.setattr("hf_farms.metrics.nll.LOGIT_BYTES", 4 * 16 * 100 * 2)
    options = {"context_length": 16, "max_windows": 7}
    expected = text_nll(whole.model, ids((200,)), **options)
    assert text_nll(streamed, ids((200,)), **options) == expected
    monkeypatch.setattr("hf_farms.metrics.nll.HIDDEN_BYTES", 1)  # a pass over the blocks for every batch
    seen = []
    assert text_nll(streamed, ids((200,)), **options, progress=lambda *step: seen.append(step)) == expected
    assert seen[-1] == (12, 12)


def written(source, folder, config, **options):
    """Prune into a folder; what its shards hold."""
    folder.mkdir()
    writer = CheckpointWriter(source.model, folder, len(source), records=folder / "records")
    source.attach(writer)
    report = prune(source, config, calibration=[ids(), ids((1, 31), 2)], **options).report
    writer.finish(None, [source.metadata(i).name for i in range(len(source))])
    return report, {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", "wanda"),
        ("qwen3", "sparsegpt"),
        ("gpt2", "wanda"),
        ("phi3", "wanda"),
        ("gpt_neox", "magnitude"),
        ("mixtral", "magnitude"),
        ("mixtral", "wanda"),
        ("qwen3_moe", "sparsegpt"),
        ("gemma3_text", "wanda"),
    ],
)
@pytest.mark.filterwarnings("ignore:calibration should have at least:hf_farms.errors.HfFarmsWarning")
def test_pruning_writes_the_same_bytes(family, method, tmp_path):
    config = PruneConfig(method=method, allocation="uniform", sparsity=0.4)
    whole, streamed = both(saved(tmp_path / "m", family_model(family)))
    expected, files = written(whole, tmp_path / "a", config)
    report, found = written(streamed, tmp_path / "b", config, activations=tmp_path / "activations")
    assert found == files
    assert report == expected
    assert all(parameter.is_meta for parameter in streamed.modules[0].parameters())
    assert len(list((tmp_path / "activations").glob("*.bin"))) == (0 if method == "magnitude" else 2)
    # What is read after that is what was written.
    again = ModelBlockSource(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b"))
    for index in range(len(again)):
        for view, other in zip(streamed.open(index).layers, again.open(index).layers, strict=True):
            assert torch.equal(view.read(), other.read())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("finished", [1, 2, 3])
def test_a_pruning_that_stopped_goes_on_to_the_same_bytes(stream, finished, tmp_path):
    """In either form, whichever form began."""
    config = PruneConfig(allocation="uniform")
    folder = saved(tmp_path / "m", tiny("llama"))
    whole, streamed = both(folder)
    expected, files = written(whole, tmp_path / "a", config)

    class Stopped(Exception):  # noqa: N818 - stands for a kill
        pass

    def stop(stage, done, total):
        if (stage, done) == ("prune", finished):
            raise Stopped("as a kill does")

    first, second = (streamed, next(both(folder))) if stream else (next(both(folder)), streamed)
    with pytest.raises(Stopped, match="as a kill does"):
        written(first, tmp_path / "b", config, progress=stop)
    (tmp_path / "b").rename(tmp_path / "c")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.safetensors")}
    assert len(before) == finished
    writer = CheckpointWriter(second.model, tmp_path / "c", len(second), records=tmp_path / "c" / "records")
    second.attach(writer)
    report = prune(second, config, calibration=[ids(), ids((1, 31), 2)]).report
    writer.finish(None, [second.metadata(i).name for i in range(len(second))])
    assert report == expected
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir() if path.is_file()} == files
    assert all((tmp_path / "c" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


def test_spectra_are_those_of_the_model_in_memory(tmp_path):
    whole, streamed = both(saved(tmp_path / "m", tiny("llama")))
    assert analyze(streamed).blocks == analyze(whole).blocks


def test_one_block_is_in_memory_at_a_time(tmp_path):
    _, streamed = both(saved(tmp_path / "m", tiny("llama")))
    for index in (1, 0, 2):
        streamed.open(index)
        inside = [all(not p.is_meta for p in module.parameters()) for module in streamed.modules]
        assert inside == [i == index for i in range(3)]


def test_dtype_is_changed_on_the_way(tmp_path):
    folder = saved(tmp_path / "m", tiny("llama"))
    whole, streamed = (
        load_model(str(folder), tokenizer=False, dtype="bfloat16", stream=s).source for s in (False, True)
    )
    assert streamed.dtype == whole.dtype == "bfloat16"
    assert all(
        torch.equal(a.read(), b.read()) for a, b in zip(streamed.open(1).layers, whole.open(1).layers, strict=True)
    )


@pytest.mark.parametrize(("free", "streamed"), [(2.5, False), (1.5, True)])
def test_a_model_is_streamed_where_it_takes_more_than_half_of_the_memory(free, streamed, tmp_path, monkeypatch):
    folder = saved(tmp_path / "m", tiny("llama"))
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr("hf_farms.loading.opening.free_memory", lambda device: int(free * size))
    assert isinstance(load_model(str(folder), tokenizer=False, stream=None).source, StreamedBlockSource) == streamed


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_shard_that_is_damaged_during_the_run(damage, tmp_path):
    """The run ends with a sentence, and goes on from there when the file is back."""
    config = PruneConfig(allocation="uniform")
    folder = saved(tmp_path / "m", tiny("llama"), max_shard_size="30KB")
    expected, files = written(next(both(folder)), tmp_path / "a", config)
    shard = max(folder.glob("*.safetensors"), key=lambda path: "model.layers.2.mlp.up_proj.weight" in load_file(path))
    content = shard.read_bytes()

    def break_it(stage, done, total):
        if (stage, done) == ("prune", 1):
            os.truncate(shard, 100) if damage == "truncated" else shard.unlink()

    _, streamed = both(folder)
    with pytest.raises(
        ModelError, match=r"weight files must not change while they are read, got model-0000.*"
    ) as raised:
        written(streamed, tmp_path / "b", config, progress=break_it)
    assert ("removed from" if damage == "gone" else "truncated or changed") in str(raised.value)
    assert "run the same command again" in raised.value.hint
    shard.write_bytes(content)
    (tmp_path / "b" / "records").rename(tmp_path / "records")
    _, streamed = both(folder)
    writer = CheckpointWriter(streamed.model, tmp_path / "b", len(streamed), records=tmp_path / "records")
    streamed.attach(writer)
    assert writer.record(0) is not None
    assert prune(streamed, config, calibration=[ids(), ids((1, 31), 2)]).report == expected
    writer.finish(None, [streamed.metadata(i).name for i in range(len(streamed))])
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir() if path.is_file()} == files


def test_a_checkpoint_without_one_of_its_weights_is_refused(tmp_path):
    folder = saved(tmp_path / "m", tiny("llama"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"got 1 missing, first model\.layers\.1\.input_layernorm\.weight"):
        load_model(str(folder), tokenizer=False, stream=True)


def test_a_quantized_checkpoint_is_not_streamed(tmp_path):
    folder = saved(tmp_path / "m", tiny("llama"))
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": "fp8"}
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match="weights must be plain to be read block by block, got fp8"):
        load_model(str(folder), tokenizer=False, stream=True)


def test_a_block_that_does_not_take_what_the_model_gives_it(tmp_path):
    model = tiny("llama")
    block = type(model.model.layers[1])

    class Stubborn(block):
        def forward(self, hidden_states, attention_mask=None):
            return super().forward(hidden_states)

    model.model.layers[1].__class__ = Stubborn
    with pytest.raises(ModelError, match=r"the model must run on its inputs, got TypeError .*forward"):
        prune(model, PruneConfig(allocation="uniform"), calibration=[ids()])


def test_a_block_that_is_called_without_hidden_states_is_refused(llama):
    def rename(_module, args, kwargs):
        return (), {"states": args[0] if args else kwargs.pop("hidden_states"), **kwargs}

    llama.model.layers[0].register_forward_pre_hook(rename, with_kwargs=True)
    with pytest.raises(ModelError, match=r"blocks must take hidden states as first argument, got a call with .*states"):
        prune(llama, PruneConfig(allocation="uniform"), calibration=[ids()])


def test_a_finished_block_that_lost_its_shard_is_pruned_again(tmp_path):
    config = PruneConfig(allocation="uniform", method="magnitude")
    _, streamed = both(saved(tmp_path / "m", tiny("llama")))
    _, files = written(streamed, tmp_path / "a", config)
    name = "model-00002-of-00004.safetensors"
    (tmp_path / "a" / name).unlink()
    writer = CheckpointWriter(streamed.model, tmp_path / "a", 3, records=tmp_path / "a" / "records")
    streamed.attach(writer)
    assert [writer.record(i) is not None for i in range(3)] == [True, False, True]
    prune(streamed, config)
    assert (tmp_path / "a" / name).read_bytes() == files[name]
