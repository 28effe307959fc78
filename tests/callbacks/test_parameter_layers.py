"""Which layers a parameter follows."""

import pytest
from families import family_model
from torch import nn

from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks.parameter_layers import layers_by_parameter


def followed(model, *, outside=False):
    source = ModelBlockSource(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: found for p, found in layers_by_parameter(model, source, outside=outside).items()}


def test_weights_and_biases_follow_their_own_layer():
    found = followed(family_model("opt"))
    layer = "model.decoder.layers.0.fc1"
    assert found[f"{layer}.weight"] == found[f"{layer}.bias"] == (layer,)


def test_fused_weights_follow_all_that_is_in_them():
    found = followed(family_model("gpt_neox"))
    layer = "gpt_neox.layers.1.attention.query_key_value"
    for name in ("weight", "bias"):
        assert found[f"{layer}.{name}"] == tuple(f"{layer}.{role}" for role in "qkv")


def test_experts_follow_those_in_their_parameter():
    found = followed(family_model("mixtral"))
    down = found["model.layers.0.mlp.experts.down_proj"]
    assert down == tuple(f"model.layers.0.mlp.experts.{e}.down" for e in range(4))


def test_a_layer_norm_follows_the_smallest_module_around_it():
    found = followed(family_model("bert"))
    block = "bert.encoder.layer.0"
    assert found[f"{block}.output.LayerNorm.weight"] == (f"{block}.output.dense",)
    found = followed(family_model("qwen3"))
    block = "model.layers.0"
    assert {name.rsplit(".", 1)[-1] for name in found[f"{block}.self_attn.q_norm.weight"]} == {
        f"{role}_proj" for role in "qkvo"
    }
    assert len(found[f"{block}.input_layernorm.weight"]) == 7


class Conv(nn.Module):
    """Convolutions and batch norms side by side, as in torchvision."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)


@pytest.mark.filterwarnings("ignore:No layout is known")
def test_a_batch_norm_follows_its_convolution():
    model = nn.Module()
    model.layers = nn.ModuleList([Conv(), Conv()])
    found = followed(model)
    for number in (1, 2):
        assert found[f"layers.0.bn{number}.weight"] == (f"layers.0.conv{number}",)
    found = followed(family_model("resnet"))
    layer = "resnet.encoder.stages.0.layers.0.layer.1"
    assert found[f"{layer}.normalization.bias"] == (f"{layer}.convolution",)


def test_outside_the_blocks_nothing_is_followed_unless_asked_for():
    found = followed(family_model("llama"))
    assert not any(name.startswith(("model.embed", "lm_head", "model.norm")) for name in found)
    found = followed(family_model("llama"), outside=True)
    assert found["lm_head.weight"] == ("lm_head",)
    assert found["model.embed_tokens.weight"] == ("model.embed_tokens",)


def test_frozen_parameters_are_left_out():
    model = family_model("llama")
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad = False
    assert not any(name.startswith("model.layers.0.") for name in followed(model))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_follow_the_layer_that_they_are_on():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(family_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    found = followed(model)
    assert found == {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{x}.default.weight": (
            f"model.layers.{i}.self_attn.q_proj",
        )
        for i in (0, 1)
        for x in "AB"
    }
