"""A plain model becomes selective and plain again; what cannot is refused before anything is changed."""

import copy
import pickle
from dataclasses import replace

import accelerate
import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from families import family_model
from models import tiny
from s2ft_steps import same, state, train
from torch import nn
from transformers import AutoModelForCausalLM

from hf_farms import S2FTConfig, apply_s2ft, restore, select_channels
from hf_farms.errors import ModelError
from hf_farms.s2ft.checks import check_plain
from hf_farms.s2ft.layers import SelectiveLinear
from hf_farms.s2ft.selection import Selection
from hf_farms.s2ft.surgery import selection_of, selective_layers
from hf_farms.s2ft.trainable import summary

LAYOUTS = pytest.mark.parametrize(
    "config",
    [
        S2FTConfig(budget=0.1),
        S2FTConfig(budget=0.2, roles=("v", "o", "up", "down"), layout="permuted"),
        S2FTConfig(budget=0.1, write_back=False),
        S2FTConfig(budget=0.1, layout="permuted", write_back=False),
    ],
    ids=["indexed", "permuted", "indexed, two products", "permuted, two products"],
)


def trained(before, selection):
    masks = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
    for name, channels in selection.channels.items():
        inputs = name.endswith(("o_proj", "down_proj"))
        masks[f"{name}.weight"][(slice(None), list(channels)) if inputs else list(channels)] = True
    return masks


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_training_changes_the_selection_only(config, dtype, ids):
    model = tiny("llama", dtype=dtype)
    before = state(model)
    selection = apply_s2ft(model, config)
    assert same(state(model), before)
    train(model, ids[0])
    after = state(model)
    for name, mask in trained(before, selection).items():
        assert torch.equal(after[name][~mask], before[name][~mask])
        assert not mask.any() or (after[name] != before[name])[mask].float().mean() > 0.9
    restore(model)
    assert same(state(model), after)
    assert same(dict(model.named_parameters()), after)


@LAYOUTS
def test_slices_are_the_only_parameters_that_train(config, llama):
    selection = apply_s2ft(llama, config)
    learning = {name: p for name, p in llama.named_parameters() if p.requires_grad}
    assert learning.keys() == {f"{name}.selected" for name in selection.channels}
    assert selection_of(llama) == selection
    layers = dict(selective_layers(llama))
    assert layers.keys() == selection.channels.keys()
    assert all(type(layer) is SelectiveLinear for layer in layers.values())
    for name, channels in selection.channels.items():
        size = len(channels)
        expected = (32, size) if name.endswith(("o_proj", "down_proj")) else (size, 32)
        assert layers[name].selected.shape == expected
        # The point of moving: what is trained is one slice.
        assert layers[name].s2ft_start == (0 if config.layout == "permuted" else layers[name].s2ft_start)


def test_summary(llama):
    total = sum(p.numel() for p in llama.parameters())
    selection = apply_s2ft(llama, S2FTConfig(budget=0.2, roles=("v", "o", "down")))
    counts = {
        role: sum(len(c) for name, c in selection.channels.items() if name.endswith(f".{role}_proj"))
        for role in ("v", "o", "down")
    }
    assert summary(llama) == {
        "trainable_parameters": 32 * sum(counts.values()),
        "trainable_share": 32 * sum(counts.values()) / total,
        **{f"channels/{role}": count for role, count in counts.items()},
    }


@LAYOUTS
def test_saved_models_are_plain(config, tmp_path, ids):
    model = tiny("qwen2")
    apply_s2ft(model, config)
    train(model, ids[0])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same(state(loaded), state(model))
    assert type(loaded.model.layers[0].self_attn.o_proj) is nn.Linear
    a, b = loaded(input_ids=ids[0]).logits, model.eval()(input_ids=ids[0]).logits
    assert float((a - b).detach().norm() / a.detach().norm()) < 1e-6


@LAYOUTS
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_plain_state_dicts_are_taken_up(config, assign, ids):
    """As load_best_model_at_end does."""
    model, other = tiny("qwen2"), tiny("qwen2", seed=7)
    apply_s2ft(model, config)
    given = copy.deepcopy(other.state_dict())
    assert not any(model.load_state_dict(given, assign=assign))
    assert same(given, other.state_dict())  # which is the caller's
    assert same(state(model), state(other))
    expected = other(input_ids=ids[0]).logits
    found = model(input_ids=ids[0]).logits
    assert float((found - expected).detach().norm() / expected.detach().norm()) < 1e-6
    train(model, ids[0], steps=1)
    for name, mask in trained(given, selection_of(model)).items():
        assert torch.equal(model.state_dict()[name][~mask], given[name][~mask])


@LAYOUTS
def test_state_dicts_of_other_models_are_refused_as_ever(config, llama):
    apply_s2ft(llama, config)
    for changes in ({"intermediate_size": 40}, {"num_attention_heads": 2, "num_key_value_heads": 1}):
        with pytest.raises(RuntimeError, match=r"size mismatch for model\.layers\.0"):
            llama.load_state_dict(tiny("llama", **changes).state_dict())


@LAYOUTS
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_models_of_their_own(config, how, llama, ids):
    selection = apply_s2ft(llama, config)
    before = state(llama)
    twin = copy.deepcopy(llama) if how == "deepcopy" else pickle.loads(pickle.dumps(llama))
    assert selection_of(twin) == selection
    train(twin, ids[0], steps=1)
    assert same(state(llama), before)
    assert not same(state(twin), before)
    after = state(twin)
    assert same(state(restore(twin)), after)
    assert selection_of(llama) == selection


def test_the_same_selection_again(llama, ids):
    config = S2FTConfig(budget=0.1, strategy="activation", layout="permuted")
    selection = select_channels(llama, config, calibration=[{"input_ids": ids[0]}])
    again = tiny("llama")
    assert apply_s2ft(again, selection=selection) == apply_s2ft(llama, config, calibration=[{"input_ids": ids[0]}])
    assert apply_s2ft(restore(again), config, selection=selection) == selection
    with pytest.raises(
        ValueError, match="config must be left out if there is a selection, which has its own, got both"
    ):
        apply_s2ft(restore(again), S2FTConfig(), selection=selection)


@pytest.mark.filterwarnings("ignore:the base of the new adapter")
def test_a_second_training_starts_where_the_first_ended(llama, ids):
    before = state(llama)
    masks = []
    for seed in range(2):
        selection = apply_s2ft(llama, S2FTConfig(budget=0.1, seed=seed, layout="permuted"))
        train(llama, ids[0], steps=1)
        restore(llama)
        masks.append(trained(before, selection))
    for name, tensor in llama.state_dict().items():
        assert torch.equal(tensor[~(masks[0][name] | masks[1][name])], before[name][~(masks[0][name] | masks[1][name])])
        assert not masks[0][name].any() or (tensor != before[name])[masks[0][name]].float().mean() > 0.9


def test_restore_leaves_plain_models_alone(llama):
    before = state(llama)
    assert restore(llama) is llama
    assert restore(restore(llama)) is llama
    assert same(state(llama), before)


@pytest.mark.parametrize("config", [S2FTConfig(budget=0.1), S2FTConfig(budget=0.1, layout="permuted")], ids=str)
def test_in_bfloat16_nothing_is_rounded_twice(config):
    """Surgery and back without a step, many times over."""
    model = tiny("llama", dtype=torch.bfloat16)
    before = state(model)
    for seed in range(3):
        apply_s2ft(model, replace(config, seed=seed))
        assert same(state(restore(model)), before)


# -- refused, and nothing changed


def refused(model, match, error, config=None, **options):
    config = config or (None if "selection" in options else S2FTConfig(budget=0.1))
    before = state(model)
    classes = [type(module) for module in model.modules()]
    learned = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(error, match=match):
        apply_s2ft(model, config, **options)
    assert same(state(model), before)
    assert [type(module) for module in model.modules()] == classes
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == learned


def test_twice(llama):
    apply_s2ft(llama, S2FTConfig(budget=0.1))
    refused(llama, r"model must be plain, got LlamaForCausalLM with S2FT on it already\. Call restore", ValueError)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters(llama):
    wrapped = peft.get_peft_model(llama, peft.LoraConfig(r=2, target_modules=["o_proj"]))
    for model in (wrapped, llama):
        refused(model, "model must be without adapters for S2FT, got PEFT adapters on", ModelError)
    apply_s2ft(wrapped.merge_and_unload(), S2FTConfig(budget=0.1))


def test_quantized(llama):
    llama.is_quantized = True
    refused(
        llama, "weights must be float32, bfloat16 or float16 for S2FT, got a quantized LlamaForCausalLM", ModelError
    )


def test_offloaded(llama):
    offloaded = accelerate.cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"weights must be loaded for S2FT, got a meta tensor in model\."):
        check_plain(offloaded)
    add_hook_to_module(llama.model.layers[1].mlp.down_proj, AlignDevicesHook(execution_device="cpu"))
    refused(
        llama,
        r"layers must run their own forward for S2FT, got one that was replaced .* in model\.layers\.1",
        ModelError,
    )


def test_sharded(llama):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.distributed.fsdp.fully_shard(llama.model.layers[0])
        with pytest.raises(
            ModelError, match=r"weights must be whole on every process for S2FT, got a sharded one in mod"
        ):
            apply_s2ft(llama, S2FTConfig(budget=0.1))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_weights_that_two_layers_share(layout):
    model = tiny("llama")
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    match = r"must belong to one layer for S2FT, got one that is both model.layers.0.mlp.down_proj.weight and model.l"
    refused(model, match, ModelError, S2FTConfig(budget=0.1, layout=layout))
    # What is moved must not be shared either, what is left alone may be.
    roles = S2FTConfig(budget=0.1, roles=("o", "up"), layout=layout)
    if layout == "permuted":
        refused(model, match, ModelError, roles)
    else:
        apply_s2ft(model, roles)


def test_tied_embeddings_stay_tied(ids):
    model = tiny("llama", tie_word_embeddings=True)
    before = state(model)
    apply_s2ft(model, S2FTConfig(budget=0.1, layout="permuted"))
    train(model, ids[0])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"])


DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("name", "channels", "match"),
    [
        (
            "model.layers.9.mlp.down_proj",
            (1,),
            r"selection must name layers of this model, got 'model.layers.9.mlp.down",
        ),
        ("lm_head", (1,), "selection must name layers of this model, got 'lm_head'"),
        (DOWN, (), "selection must have ascending channels from 0 to 47 in model"),
        (DOWN, (1, 48), "selection must have ascending channels from 0 to 47 in model"),
        (DOWN, (-1, 3), "selection must have ascending channels from 0 to 47 in model"),
        (DOWN, (3, 1), "selection must have ascending channels from 0 to 47 in model"),
        (DOWN, (3, 3), "selection must have ascending channels from 0 to 47 in model"),
        ("model.layers.0.mlp.up_proj", (48,), "selection must have ascending channels from 0 to 47 in model"),
        ("model.layers.0.self_attn.v_proj", (16,), "selection must have ascending channels from 0 to 15 in model"),
    ],
)
@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_selections_of_other_models(llama, name, channels, match, layout):
    refused(llama, match, ValueError, selection=Selection(S2FTConfig(layout=layout), {name: channels}))


@pytest.mark.parametrize(
    "channels",
    [
        {"self_attn.o_proj": tuple(range(8, 16))},  # half a group
        {"self_attn.o_proj": (1, 2)},
        {"mlp.down_proj": (1, 2), "mlp.up_proj": (1, 3)},
        {"self_attn.v_proj": tuple(range(8)), "self_attn.o_proj": tuple(range(16, 32))},
    ],
    ids=str,
)
def test_parts_of_units_are_not_moved(channels, llama, ids):
    """Else other channels would be trained than the selection says; where they are, each can be."""
    channels = {f"model.layers.1.{name}": found for name, found in channels.items()}
    selection = Selection(S2FTConfig(layout="permuted"), channels)
    refused(
        llama,
        r"selection must have whole heads .* for layout 'permuted', got others in model",
        ValueError,
        selection=selection,
    )
    selection, before = Selection(S2FTConfig(), channels), state(llama)
    apply_s2ft(llama, selection=selection)
    train(llama, ids[0], steps=1)
    for name, mask in trained(before, selection).items():
        assert torch.equal((llama.state_dict()[name] != before[name]).any(), mask.any())
        assert torch.equal(llama.state_dict()[name][~mask], before[name][~mask])


def test_layers_that_are_no_unit_are_not_moved():
    model = family_model("deepseek_v2")
    selection = Selection(S2FTConfig(layout="permuted"), {"model.layers.0.self_attn.kv_b_proj": (1, 2)})
    match = r"selection must be of heads or channels for layout 'permuted', got model.layers.0.self_attn.kv_b_proj"
    refused(model, match, ValueError, selection=selection)


def test_optimizers_that_evaluate_inside_a_step_need_two_products(ids):
    """LBFGS moves the slice between its evaluations; the weight follows when the step is over."""
    losses = {}
    for write_back in (True, False):
        model = tiny("llama")
        apply_s2ft(model, S2FTConfig(budget=0.1, write_back=write_back))
        optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], max_iter=4)
        seen = []

        def closure(model=model, optimizer=optimizer, seen=seen):
            optimizer.zero_grad()
            loss = model(input_ids=ids[0], labels=ids[0]).loss
            loss.backward()
            seen.append(float(loss.detach()))
            return loss

        optimizer.step(closure)
        losses[write_back] = seen
    assert len(set(losses[True])) == 1
    assert losses[False][-1] < losses[False][0]
