"""The worker extension, with a stand-in for the module of vLLM that patches weights."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from adapters import same, state
from models import tiny
from random_adapters import merged, random_adapter

from hf_farms.errors import ModelError
from hf_farms.serving.vllm import PATCHES, S2FTWorkerExtension


class Worker(S2FTWorkerExtension):
    """What the extension reads of a worker."""

    def __init__(self, model, served=None, *, lora=None, quantization=None, dtype=torch.bfloat16):
        self.model = model
        self.device = torch.device("cpu")
        model_config = SimpleNamespace(quantization=quantization, dtype=dtype, model=served, revision=None)
        self.vllm_config = SimpleNamespace(lora_config=lora, model_config=model_config)

    def get_model(self):
        return self.model


@pytest.fixture
def vllm(monkeypatch):
    """The module of vLLM 0.33, on models whose parameters have the names of the checkpoint."""
    module = ModuleType(PATCHES)
    module.CheckpointWeightPatch = SimpleNamespace
    module.calls = []

    def load(model, patches):
        module.calls.append(patches)
        with torch.no_grad():
            for patch in patches:
                weight = model.get_parameter(patch.name)
                assert (tuple(weight.shape), weight.dtype) == (patch.shape, patch.dtype)
                weight.view(-1)[patch.indices.long()] = patch.values
        return {patch.name for patch in patches}

    module.load_checkpoint_weight_patches = load
    monkeypatch.setitem(sys.modules, PATCHES, module)
    return module


@pytest.fixture
def base():
    return tiny("llama", dtype=torch.bfloat16)


@pytest.fixture
def saved(base, tmp_path):
    """Two adapters with common channels, their folders, and that of the base."""
    base.save_pretrained(tmp_path / "base")
    adapters = [random_adapter(base, seed, channels=(8, 12)) for seed in (1, 2)]
    for name, adapter in zip("ab", adapters, strict=True):
        adapter.save_pretrained(tmp_path / name)
    return adapters, [str(tmp_path / name) for name in "ab"], str(tmp_path / "base")


def test_adapters_are_switched_in_an_engine(vllm, base, saved):
    adapters, folders, served = saved
    worker = Worker(tiny("llama", dtype=torch.bfloat16), served)
    for adapter, folder in [*zip(adapters, folders, strict=True), (adapters[1], folders[1])]:
        assert worker.apply_s2ft_adapter(folder) > 0
        assert same(state(worker.model), state(merged(tiny("llama", dtype=torch.bfloat16), adapter)))
    assert worker.apply_s2ft_adapter(None) > 0
    assert same(state(worker.model), state(base))
    assert worker.apply_s2ft_adapter(None) == 0
    assert len(vllm.calls) == 4


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"lora": object()}, r"without LoRA .*, got --enable-lora\. Start it without, or request"),
        (
            {"quantization": "fp8"},
            r"not be quantized to be patched, got fp8\. Export the adapter as a LoRA \(hf-farms adapter export",
        ),
        ({"dtype": torch.float16}, "dtype of the adapter, bfloat16, got float16. Start it with --dtype bfloat16"),
    ],
)
def test_engines_that_cannot_be_patched(vllm, base, saved, engine, message):
    with pytest.raises(ModelError, match=message):
        Worker(base, saved[2], **engine).apply_s2ft_adapter(saved[1][0])
    assert vllm.calls == []


def test_packed_weights_are_refused(vllm, base, saved):
    base.model.layers[0].self_attn.o_proj.weight.data = torch.empty(0)
    message = (
        r"must keep the weights of the checkpoint to patch them, got packed ones on cpu\. Export the adapter as a LoRA"
    )
    with pytest.raises(ModelError, match=message):
        Worker(base, saved[2]).apply_s2ft_adapter(saved[1][0])
    assert vllm.calls == []


def test_slices_of_the_base_come_from_the_served_checkpoint(vllm, base, saved, tmp_path):
    saved[0][0].save_pretrained(tmp_path / "bare", include_base=False)
    before, worker = state(base), Worker(base, saved[2])
    worker.apply_s2ft_adapter(str(tmp_path / "bare"))
    assert not same(state(base), before)
    worker.apply_s2ft_adapter(None)
    assert same(state(base), before)


def test_adapters_of_another_base_are_refused(vllm, base, saved, tmp_path):
    tiny("llama", dtype=torch.bfloat16, seed=1).save_pretrained(tmp_path / "other")
    message = (
        r"must serve the base model of the adapter, got '.*other' with other weights in model\.layers\.0\..* Start it"
    )
    with pytest.raises(ModelError, match=message):
        Worker(base, str(tmp_path / "other")).apply_s2ft_adapter(saved[1][0])
    assert vllm.calls == []


def test_a_patch_that_fails_leaves_an_engine_to_restart(vllm, base, saved, monkeypatch):
    worker = Worker(base, saved[2])

    def fail(model, patches):
        raise NotImplementedError("a loader that does not copy")

    with monkeypatch.context() as patched:
        patched.setattr(vllm, "load_checkpoint_weight_patches", fail)
        with pytest.raises(NotImplementedError, match="does not copy"):
            worker.apply_s2ft_adapter(saved[1][0])
    with pytest.raises(ModelError, match=r"an engine in which a patch has failed, .* Restart the engine"):
        worker.apply_s2ft_adapter(None)


def test_earlier_versions_are_refused(monkeypatch, base):
    earlier = ModuleType("vllm")
    earlier.__version__ = "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", earlier)
    with pytest.raises(
        ModelError,
        match=r"vLLM must have checkpoint weight patches, .*, got 0\.32\.0\. Update vLLM\. Or: Export the adapter",
    ):
        Worker(base).apply_s2ft_adapter(None)
