"""Tensors that transformers splits on loading: read from disk, streamed and written as they are in memory."""

import pytest
import torch
import transformers
from families import G
from safetensors.torch import load_file

from hf_farms.config import PruneConfig
from hf_farms.loading.opening import load_model, open_model
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.pruning.pruner import prune

pytestmark = pytest.mark.filterwarnings("ignore:No layout is known")

C = {key: G[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
T = {**C, "vocab_size": 100, "max_position_embeddings": 40}
GQA = {**T, "num_key_value_heads": 2, "head_dim": 8}
MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
ROUTED = {**GQA, **MOE, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
SEES = {"image_size": 16, "patch_size": 8}
V = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **SEES}
SAM = {**V, "model_type": "unlimited_ocr_sam_vision_model"}
CLIP = {**V, "intermediate_size": 48, "model_type": "unlimited_ocr_vision_encoder"}

# Class, config and options; a part of a tensor that is split, by the name that the tensor has on disk.
SPLIT = {
    "sarvam_moe": ("Glm4MoeForCausalLM", "SarvamMoE", {**ROUTED, "first_k_dense_replace": 1}, "query_key_value"),
    "lara_mini": (
        "LaraMiniForCausalLM",
        "LaraMini",
        {**GQA, **MOE, **DELTA, "num_experts": 4, "shared_expert_intermediate_size": 24},
        "linear_attn.in_proj.",
    ),
    "molmo2_text": ("Molmo2TextModel", "Molmo2Text", GQA, "att_proj"),
    "hrm_text": ("HrmTextForCausalLM", "HrmText", {**T, "head_dim": 8}, "gqkv_proj"),
    "nomic_bert": ("NomicBertForMaskedLM", "NomicBert", {**T, "head_dim": 8}, "attn.Wqkv"),
    "gte": ("GteForMaskedLM", "Gte", T, "attention.qkv_proj"),
    "jina_embeddings_v3": ("JinaEmbeddingsV3ForMaskedLM", "JinaEmbeddingsV3", T, "mixer.Wqkv"),
    "radio": ("RadioModel", "Radio", V, "attn.qkv"),
    "sapiens2": ("Sapiens2Model", "Sapiens2", {**V, "intermediate_size": 48}, "ffn.w12"),
    "dinov2": ("Dinov2Model", "Dinov2", {**V, "use_swiglu_ffn": True}, "mlp.weights_in"),
    "qianfan_ocr": (
        "QianfanOCRForConditionalGeneration",
        "QianfanOCR",
        {
            "vision_config": {**C, "model_type": "qianfan_ocr_vision"},
            "text_config": {**GQA, "model_type": "qwen3"},
        },
        "attn.qkv.",
    ),
    "unlimited_ocr": (
        "UnlimitedOcrForConditionalGeneration",
        "UnlimitedOcr",
        {
            "vision_config": {"sam_config": SAM, "encoder_config": CLIP, "model_type": "unlimited_ocr_vision"},
            "text_config": {**ROUTED, "model_type": "unlimited_ocr_text"},
        },
        "qkv_proj",
    ),
}
FAST = ("sarvam_moe", "lara_mini", "molmo2_text")


def split_model(name):
    architecture, config, options, _ = SPLIT[name]
    if not hasattr(transformers, architecture) or not hasattr(transformers, f"{config}Config"):
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, f"{config}Config")(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def pruned(folder, out, *, stream):
    """The files of the model in `folder`, pruned."""
    loaded = load_model(str(folder), tokenizer=False, stream=stream)
    out.mkdir()
    writer = CheckpointWriter(loaded.model, out, len(loaded.source), records=out / "records")
    loaded.source.attach(writer)
    prune(loaded.source, PruneConfig(method="magnitude", allocation="uniform"))
    writer.finish(None, [loaded.source.metadata(index).name for index in range(len(loaded.source))])
    return contents(out), loaded


def contents(folder):
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SPLIT])
def test_a_tensor_that_is_split_is_read_and_written_as_in_memory(name, tmp_path):
    split_model(name).save_pretrained(tmp_path / "dense")
    assert any(SPLIT[name][3] in key for key in contents(tmp_path / "dense"))
    stored = open_model(tmp_path / "dense")
    source = load_model(str(tmp_path / "dense"), tokenizer=False, stream=False).source
    for index in range(len(source)):
        for ours, theirs in zip(stored.open(index).layers, source.open(index).layers, strict=True):
            assert torch.equal(ours.read(), theirs.read()), ours.name
    in_memory, _ = pruned(tmp_path / "dense", tmp_path / "memory", stream=False)
    streamed, loaded = pruned(tmp_path / "dense", tmp_path / "streamed", stream=True)
    assert in_memory.keys() == streamed.keys() == contents(tmp_path / "dense").keys()
    assert all(torch.equal(in_memory[key], streamed[key]) for key in in_memory)
    # What was pruned is read again from its shard.
    assert loaded.source.count_parameters()[1] > 0


def test_a_part_that_was_read_may_be_changed(tmp_path):
    """The parts of a tensor are converted together, and none is shared with whoever asks next."""
    split_model("sarvam_moe").save_pretrained(tmp_path)
    source = load_model(str(tmp_path), tokenizer=False, stream=True).source
    for _ in range(2):
        layers = [layer for layer in source.open(0).layers if layer.role in ("q", "k", "v")]
        assert all(bool(layer.read().any()) for layer in layers)
        layers[0].write_(torch.zeros_like(layers[0].read()))
        layers[2].write_(torch.zeros_like(layers[2].read()))
        source.open(1)
