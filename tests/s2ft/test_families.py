"""Surgery on every family: same function, same state dict, full fine-tuning's gradient, and back."""

import copy

import pytest
import torch
import transformers
from families import C, G, family_model
from s2ft_families import FAMILIES, HEADS, scattered

import hf_farms.blocks.discovery
import hf_farms.s2ft.permuting
from hf_farms import S2FTConfig, apply_s2ft, restore, select_channels
from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.coupling import check_movable, coupled_structures
from hf_farms.errors import ModelError


def build(name, monkeypatch):
    """A random model; Olmo 2, whose norms go over all heads, as if its layout had been checked."""
    if name != "olmo2":
        return family_model(name)
    for place in (hf_farms.blocks.discovery, hf_farms.s2ft.permuting):
        monkeypatch.setattr(place, "KNOWN", place.KNOWN | {"olmo2"})
    torch.manual_seed(0)
    model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**C, num_key_value_heads=2, pad_token_id=0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def slow_experts(model):
    """The fast ones do not take float64."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def inputs(name, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 100, (2, 11), generator=generator)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator).to(dtype)}
    return {"input_ids": ids, "decoder_input_ids": ids[:, 3:]} if name == "t5" else {"input_ids": ids}


def trained_entries(model, selection):
    """For each parameter, as the plain model has it, whether an entry is trained: written channel by channel."""
    masks = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    source = ModelBlockSource(model)
    for layer in (layer for index in range(len(source)) for layer in source.metadata(index).layers):
        mask = layer.part.of(masks[layer.parameter]).clone() if layer.kind == "linear" else None
        for channel in selection.channels.get(layer.name, ()):
            mask[(slice(None), channel) if layer.role in ("o", "down") else channel] = True
        if mask is not None:
            layer.part.into_(masks[layer.parameter], mask)
    return masks


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def distance(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


def loss_of(model, batch):
    output = model(**batch).logits
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return (output.square() * weights).mean()


def cases():
    """In float32 a permuted sum rounds otherwise; that the sums are the same, float64 shows."""
    for name, every in FAMILIES.items():
        inputs, outputs = (tuple(role for role in every if (role in ("o", "down")) == side) for side in (True, False))
        for layout in ("indexed", "permuted") if name != "t5" else ("indexed",):
            for roles in (every, inputs, outputs):
                double = layout == "permuted" and roles is not every
                dtype, logits, gradient = (torch.float64, 1e-13, 1e-11) if double else (torch.float32, 1e-6, 1e-6)
                if layout == "permuted" and not double:
                    gradient = 1e-4
                elif name == "olmo2" and double:
                    logits, gradient = 1e-7, 1e-6  # its norms over all heads are float32 whatever the weights are
                yield pytest.param(
                    *(name, layout, roles, dtype, logits, gradient), id=f"{name}-{layout}-{'+'.join(roles)}"
                )


@pytest.mark.parametrize(("name", "layout", "roles", "dtype", "close", "gradient"), list(cases()))
def test_surgery_on_every_family(name, layout, roles, dtype, close, gradient, monkeypatch):
    model = build(name, monkeypatch).to(dtype)
    slow_experts(model)
    next(model.parameters()).requires_grad_(False)
    full = copy.deepcopy(model).requires_grad_(True)
    batch, before = inputs(name, dtype), state(model)
    kept = {n: (type(m), dict(m.named_buffers(recurse=False))) for n, m in model.named_modules()}
    parameters = [(n, p, p.requires_grad) for n, p in model.named_parameters()]
    logits = model(**batch).logits.detach()
    selection = scattered(model, S2FTConfig(roles=roles, layout=layout))
    masks = trained_entries(model, selection)
    raw = {n: p.detach().clone() for n, p in model.named_parameters()}

    assert apply_s2ft(model, selection=selection) == selection
    changed = {n for n, p in model.named_parameters() if n in raw and not torch.equal(p, raw[n])}
    assert bool(changed) == (layout == "permuted")
    assert distance(model(**batch).logits, logits) <= close
    with torch.no_grad():
        assert distance(model(**batch).logits, logits) <= close
    assert state(model).keys() == before.keys()
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())

    loss_of(full, batch).backward()
    expected = {n: p.grad for n, p in full.named_parameters()}
    loss_of(model, batch).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(int(mask.sum()) for mask in masks.values()) > 0
    # So large that the change of a weight has the gradient's digits.
    lr = 1e4 / float(torch.stack([p.grad.norm() for p in trained]).mean())
    torch.optim.SGD(trained, lr=lr).step()
    after = state(model)
    for n, mask in masks.items():
        assert torch.equal(after[n][~mask], before[n][~mask])
        if mask.any():
            assert distance((before[n] - after[n])[mask] / lr, expected[n][mask]) <= gradient

    logits = model(**batch).logits.detach()
    assert restore(model) is model
    assert {n: type(m) for n, m in model.named_modules()} == {n: kind for n, (kind, _) in kept.items()}
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [(n, g) for n, _, g in parameters]
    assert all(p is q for (_, p, _), q in zip(parameters, model.parameters(), strict=True))
    for n, module in model.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        assert buffers.keys() == kept[n][1].keys()
        assert all(torch.equal(buffer, kept[n][1][key]) for key, buffer in buffers.items())
        assert not [key for key in vars(module) if "s2ft" in key or key == "selected"]
    assert all(torch.equal(tensor, after[n]) for n, tensor in model.state_dict().items())
    assert distance(model(**batch).logits, logits) <= close


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt_oss", "gpt_neox", "gpt2", "phi3"])
def test_eight_heads_in_four_groups_change_places(name):
    changes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "hidden_size": 32}
    changes = {"n_head": 8} if name == "gpt2" else changes
    torch.manual_seed(0)
    kind = type(family_model(name))
    model = kind(kind.config_class(**{**family_model(name).config.to_diff_dict(), **changes})).eval().double()
    slow_experts(model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch, before = inputs(name), state(model)
    logits = model(**batch).logits.detach()
    config = S2FTConfig(roles=("q", "v", "o"), layout="permuted")
    apply_s2ft(model, selection=scattered(model, config))
    assert distance(model(**batch).logits, logits) <= 1e-12
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_position_biases_and_alibi_cannot_move():
    for name, kind in (("t5", "position biases for every head in T5For"), ("falcon_old", "ALiBi in FalconFor")):
        model = family_model(name)
        source = ModelBlockSource(model)
        attention, feed_forward = coupled_structures(source.metadata(0), source.config, whole_groups=True)
        check_movable(model, feed_forward)
        with pytest.raises(ModelError, match=f"layout 'permuted' must be able to move heads, got {kind}"):
            check_movable(model, attention)


def refused(model, match, error=ModelError, **options):
    """The model stays as it is."""
    before = state(model)
    learned = [p.requires_grad for p in model.parameters()]
    classes = [type(module) for module in model.modules()]
    with pytest.raises(error, match=match):
        apply_s2ft(model, S2FTConfig(**{"budget": 0.05, **options}))
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == learned
    assert [type(module) for module in model.modules()] == classes


BUDGETS = {"t5": 0.03, "deepseek_v2": 0.02, "qwen3_next": 0.01}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("t5", "layout 'permuted' must be able to move heads, got position biases for every head"),
        ("deepseek_v2", r"must know every layer coupled to model.layers.0.self_attn.o_proj, got none for k, q, v"),
        ("qwen3_next", r"must know every layer coupled to model.layers.3.self_attn.o_proj, got none for q\."),
    ],
)
def test_heads_that_cannot_move_are_refused(name, match):
    refused(family_model(name), match, roles=("o",), layout="permuted", budget=BUDGETS[name])
    # Where they are, they can be trained.
    model = family_model(name)
    before = model(**inputs(name)).logits
    apply_s2ft(model, S2FTConfig(budget=BUDGETS[name], roles=("o",)))
    assert distance(model(**inputs(name)).logits, before) <= 1e-6


@pytest.mark.filterwarnings("ignore:No layout is known")
def test_unknown_architectures_are_indexed_only():
    config = transformers.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4)
    model = transformers.BloomForCausalLM(config).eval()
    refused(model, "layout 'permuted' must know the coupled layers of a model, got bloom", layout="permuted")
    apply_s2ft(model, S2FTConfig(budget=0.05))


@pytest.mark.parametrize("name", ["falcon", "falcon_multi_query"])
def test_linear_layers_of_other_classes_are_refused(name):
    refused(family_model(name), r"trained layers must be nn.Linear or Conv1D, got .*FalconLinear in transformer\.h\.0")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2"])
@pytest.mark.parametrize("roles", [("o", "down"), ("down",), ("up",)])
def test_experts_are_refused(name, roles):
    refused(family_model(name), rf"got experts inside one parameter for role '{roles[-1]}' \(.*experts", roles=roles)


@pytest.mark.parametrize(
    ("name", "roles", "has"),
    [
        ("gpt2", ("gate",), "q, k, v, o, up, down"),
        ("opt", ("o", "gate"), "q, k, v, o, up, down"),
        ("mixtral", ("gate_up",), None),
        ("deepseek_v3", ("v",), "o, gate, up, down"),
    ],
)
def test_roles_that_a_model_lacks_are_refused(name, roles, has):
    if has is None:
        with pytest.raises(ValueError, match="roles must be one of q, k, v, o, gate, up, down, got 'gate_up'"):
            S2FTConfig(roles=roles)
        return
    refused(
        family_model(name),
        rf"roles must be among those that the model has \({has}\), got '{roles[-1]}'",
        ValueError,
        roles=roles,
    )


@pytest.mark.parametrize("name", ["resnet", "mamba"])
def test_models_without_heads_and_channels_select_nothing(name):
    model = family_model(name)
    assert len(select_channels(model)) == len(apply_s2ft(model)) == 0
    assert all(p.requires_grad for p in model.parameters())
    assert restore(model) is model


@pytest.mark.parametrize(
    ("name", "units"),
    [("llama", (4, 2)), ("phi3", (4, 2)), ("gpt2", (4, 4)), ("falcon_multi_query", (4, 1)), ("deepseek_v2", (4, 4))],
)
def test_heads_and_their_groups(name, units):
    source = ModelBlockSource(family_model(name))
    for whole_groups, expected in zip((False, True), units, strict=True):
        attention, _ = coupled_structures(source.metadata(0), source.config, whole_groups=whole_groups)
        assert attention.units == expected
        assert {m.layer.role for m in attention.members} <= set(HEADS)


def test_heads_of_a_size_of_their_own():
    """Gemma's heads are not hidden_size / heads wide."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**G, "head_dim": 12, "num_key_value_heads": 1})
    source = ModelBlockSource(transformers.LlamaForCausalLM(config))
    heads, _ = coupled_structures(source.metadata(0), source.config, whole_groups=False)
    groups, _ = coupled_structures(source.metadata(0), source.config, whole_groups=True)
    assert {m.layer.role: m.width for m in heads.members} == {"q": 12, "o": 12}
    assert {m.layer.role: m.width for m in groups.members} == {"q": 48, "k": 12, "v": 12, "o": 48}
    assert heads.members[-1].channels([3, 1]).tolist() == [*range(36, 48), *range(12, 24)]
