import pytest
import torch
from families import FAMILIES, family_model, roles_of

from hf_farms.blocks import ModelBlockSource
from hf_farms.spectra.analysis import analyze

pytestmark = pytest.mark.filterwarnings(r"ignore:\d+ of \d+ layers are smaller than windows")


def layer_of(source, role, index=-1, number=0):
    block = source.open(range(len(source))[index])
    return [layer for layer in block.layers if layer.metadata.role == role][number]


@pytest.mark.parametrize("name", FAMILIES)
def test_roles_and_shapes(name):
    source = ModelBlockSource(family_model(name))
    for index, roles in zip((0, len(source) - 1), roles_of(name), strict=True):
        layers = source.metadata(index).layers
        # Some families declare k before q, or o before the fused weight.
        assert sorted(layer.role for layer in layers) == sorted(roles)
        assert len({layer.name for layer in layers}) == len(layers)
        for layer, view in zip(layers, source.open(index).layers, strict=True):
            assert view.read().shape == layer.shape


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_cover_their_parameters_and_never_overlap(name):
    model = family_model(name)
    source = ModelBlockSource(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    views = [view for index in range(len(source)) for view in source.open(index).layers]
    held = {view.metadata.parameter for view in views}
    for view in views:
        view.write_(view.read() + 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] + 1 if key in held else before[key]), key
    assert len(held) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_analyzed(name):
    report = analyze(family_model(name), outside=True)
    assert all(block.alpha is not None for block in report.blocks)
    assert report.from_json(report.to_json()) == report


def test_fused_rows_of_phi3():
    model = family_model("phi3")
    source = ModelBlockSource(model)
    block = model.model.layers[-1]
    q, k, v = block.self_attn.qkv_proj.weight.split([32, 16, 16])
    gate, up = block.mlp.gate_up_proj.weight.chunk(2)
    for role, expected in {"q": q, "k": k, "v": v, "gate": gate, "up": up}.items():
        assert torch.equal(layer_of(source, role).read(), expected)


def test_transposed_and_fused_gpt2():
    model = family_model("gpt2")
    source = ModelBlockSource(model)
    block = model.transformer.h[-1]
    for role, expected in zip("qkv", block.attn.c_attn.weight.split(32, dim=1), strict=True):
        assert torch.equal(layer_of(source, role).read(), expected.T)
    assert torch.equal(layer_of(source, "down").read(), block.mlp.c_proj.weight.T)


def test_interleaved_heads_of_gpt_neox():
    model = family_model("gpt_neox")
    source = ModelBlockSource(model)
    fused = model.gpt_neox.layers[-1].attention.query_key_value.weight
    for number, role in enumerate("qkv"):
        expected = torch.cat([fused[head * 24 + number * 8 :][:8] for head in range(4)])
        assert torch.equal(layer_of(source, role).read(), expected)


@pytest.mark.parametrize("name", ["falcon", "falcon_multi_query", "falcon_old"])
def test_falcon_splits_its_heads_as_the_model_does(name):
    model = family_model(name)
    source = ModelBlockSource(model)
    attention = model.transformer.h[-1].self_attention
    # What the fused weight gives for the unit vectors is its transpose: (batch, in, rows).
    split = attention._split_heads(attention.query_key_value.weight.T[None])
    for role, heads in zip("qkv", split, strict=True):
        weight = layer_of(source, role).read()
        if name == "falcon" and role != "q":  # the model repeats k and v for every query of the group
            heads = heads[:, :, ::2]
        assert torch.equal(weight, heads[0].flatten(1).T)


@pytest.mark.parametrize(
    ("name", "transposed", "alternating"),
    [("mixtral", False, False), ("qwen3_moe", False, False), ("gpt_oss", True, True), ("llama4_text", True, False)],
)
def test_experts(name, transposed, alternating):
    model = family_model(name)
    source = ModelBlockSource(model)
    experts = next(m for n, m in model.model.layers[-1].named_modules() if n.endswith("experts"))
    for e in range(4):
        fused, down = experts.gate_up_proj[e], experts.down_proj[e]
        fused, down = (fused.T, down.T) if transposed else (fused, down)
        gate, up = (fused[::2], fused[1::2]) if alternating else fused.chunk(2)
        for role, expected in {"gate": gate, "up": up, "down": down}.items():
            layer = layer_of(source, role, number=e)
            assert layer.name.endswith(f"experts.{e}.{role}")
            assert torch.equal(layer.read(), expected)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_do_not_drown_attention(name):
    report = analyze(family_model(name))
    for block in report.blocks:
        by_role = {}
        for layer in block.layers:
            by_role.setdefault(layer.role, []).append(layer.alpha)
        assert len(by_role["down"]) == 4
        means = [sum(alphas) / len(alphas) for role, alphas in by_role.items() if role != "router"]
        assert block.alpha == pytest.approx(sum(means) / len(means))


def test_a_wrapped_language_model_is_measured_and_not_the_vision_tower():
    for name in ("gemma3", "qwen3_vl"):
        source = ModelBlockSource(family_model(name))
        assert [source.metadata(i).name for i in range(len(source))] == [
            f"model.language_model.layers.{i}" for i in (0, 1)
        ]
