"""Routers are known by what they are, and no method touches them."""

import pytest
import torch
from auto_families import build, families
from torch import nn

from hf_farms import PruneConfig, analyze, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.loading.opening import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:No layout is known"),
    pytest.mark.filterwarnings(r"ignore:\d+ of \d+ layers are smaller than windows"),
]

# Family -> ends of the names of its routers.
ROUTERS = {
    "lfm2_moe": {"feed_forward.gate"},
    "hunyuan_v1_moe": {"mlp.gate.wg"},
    "jetmoe": {"mlp.router.layer", "self_attention.experts.router.layer"},
    "afmoe": {"mlp.router.gate"},
    "nemotron_h": {"mixer.gate"},
    "longcat_flash": {"mlp.router.classifier"},
    "inkling_text": {"mlp.gate"},
    "gpt_oss": {"mlp.router"},
    "granitemoe": {"block_sparse_moe.router"},
    "deepseek_v4": {
        *("mlp.gate", "self_attn.compressor.gate_proj", "self_attn.compressor.indexer.gate_proj"),
        *("self_attn.compressor.indexer.kv_proj", "self_attn.compressor.indexer.q_b_proj"),
        "self_attn.compressor.indexer.scorer.weights_proj",
    },
    # No experts, no routers; mlp.gate is half of its feed-forward network in some.
    "llama": set(),
}


def routers_of(source):
    return {layer.name for i in range(len(source)) for layer in source.metadata(i).layers if layer.role == "router"}


@pytest.mark.parametrize("family", ROUTERS)
@pytest.mark.parametrize("stream", [False, True])
def test_routers_are_found_and_never_pruned(family, stream, tmp_path):
    build(*families()[family]).save_pretrained(tmp_path)
    source = load_model(str(tmp_path), tokenizer=False, stream=stream).source
    found = routers_of(source)
    assert {name.split(".", 3)[-1] for name in found} == ROUTERS[family]
    if not stream:
        pruned = prune(source, PruneConfig(method="magnitude", allocation="uniform")).report
        assert not found & {layer.name for block in pruned.blocks for layer in block.layers}
        assert all(bool((source.model.get_submodule(name).weight != 0).all()) for name in found)


def test_their_alphas_count_in_no_block():
    model = build(*families()["lfm2_moe"])
    before = analyze(model)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.feed_forward.gate.weight.copy_(torch.linalg.qr(torch.randn(32, 6)).Q.T * 1e3)
    assert [block.alpha for block in analyze(model).blocks] == [block.alpha for block in before.blocks]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(6, 16, 16))


class Layer(nn.Module):
    """Six experts, and layers with six outputs that choose none of them."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Module()
        self.attention.bias_proj = nn.Linear(16, 6)
        self.moe = nn.Module()
        self.moe.experts = Experts()
        self.moe.picker = nn.Linear(16, 6)
        self.moe.shared_expert = nn.Module()
        self.moe.shared_expert.narrow = nn.Linear(16, 6)
        self.moe.out = nn.Linear(16, 16)
        self.mlp = nn.Module()
        self.mlp.gate = nn.Linear(16, 48)


def test_a_router_is_known_by_its_place_and_size_and_not_by_size_alone():
    model = nn.Module()
    model.layers = nn.ModuleList(Layer() for _ in range(2))
    source = ModelBlockSource(model)
    assert routers_of(source) == {"layers.0.moe.picker", "layers.1.moe.picker"}
    assert {layer.role for layer in source.metadata(0).layers if layer.name == "layers.0.mlp.gate"} == {"gate"}
