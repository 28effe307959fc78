"""KeepZerosCallback and `mask_lora` on adapters of an unmodified PEFT: zeros stay in training and after merging."""

import copy

import pytest
import torch
from models import tiny
from torch import nn
from torch.func import functional_call
from trainers import Tokens, assert_resume_is_exact, pruned, trainer, weights

from hf_farms import KeepZerosCallback, mask_lora
from hf_farms.blocks.adapters import with_adapters
from hf_farms.errors import ModelError, NoEffectWarning

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pin_memory.*", "ignore:.is_gradient_checkpointing. is deprecated", "ignore:Could not find a config file"
)
ROLES = ["q_proj", "down_proj"]


def adapted(model=None, name="default", **options):
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ROLES, "init_lora_weights": False} | options)
    return peft.get_peft_model(model or pruned(), config, adapter_name=name)


def zeros_of(model):
    """Masks of the blocks' matrices by name, whether adapted or not."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter.detach() == 0
        for name, parameter in model.named_parameters()
        if ".layers." in name and parameter.ndim > 1 and "lora_" not in name
    }


def assert_sparse(model, masks):
    state = {name: parameter for name, parameter in model.named_parameters() if name in masks}
    assert state.keys() == masks.keys()
    assert all((parameter[masks[name]] == 0).all() for name, parameter in state.items())


def logits(model):
    with torch.no_grad():
        return model(Tokens(4).ids).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("safe", [True, False])
def test_merging_keeps_every_zero_and_the_outputs(safe, dtype):
    base = pruned(dtype=dtype, pattern="2:4")
    dense, masks = weights(base), zeros_of(base)
    model = adapted(base).eval()
    assert mask_lora(model) == 2 * len(base.model.layers)
    before = logits(model)
    merged = model.merge_and_unload(safe_merge=safe)
    assert not any(hasattr(module, "lora_A") for module in merged.modules())
    assert_sparse(merged, masks)
    for name, parameter in merged.named_parameters():
        changed = any(f"{role}.weight" in name for role in ROLES)
        assert torch.equal(parameter, dense[name]) != changed, name
    assert torch.allclose(logits(merged), before, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_without_it_merging_fills_them():
    base = pruned()
    masks = zeros_of(base)
    merged = adapted(base).merge_and_unload()
    filled = {name for name, p in merged.named_parameters() if name in masks and (p[masks[name]] != 0).any()}
    assert filled == {name for name in masks if any(role in name for role in ROLES)}


def test_unmerging_restores_the_base():
    model = adapted()
    masks = zeros_of(model)
    before = weights(model)
    mask_lora(model)
    model.merge_adapter()
    model.unmerge_adapter()
    assert all(torch.allclose(p, before[name], atol=1e-6) for name, p in weights(model).items())
    assert all(torch.equal(mask, masks[name]) for name, mask in zeros_of(model).items())


def test_training_equals_a_loop_over_masked_dense_weights():
    """The effective weight W + mask * (B A) * scaling is written out; everything else is a plain model."""
    base = pruned()
    plain, masks = copy.deepcopy(base), zeros_of(base)
    model = adapted(base)
    twin = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    mask_lora(model)
    ids = Tokens(4).ids
    ours = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    theirs = torch.optim.AdamW(twin.values(), lr=1e-2)
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        state = dict(plain.named_parameters())
        for name in masks:
            path = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{path}.lora_A.default.weight" in twin:
                delta = twin[f"{path}.lora_B.default.weight"] @ twin[f"{path}.lora_A.default.weight"] * 2
                state[name] = state[name].detach() + torch.where(masks[name], 0, delta)
        expected = functional_call(plain, state, (ids,), {"labels": ids}).loss
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for name, parameter in model.named_parameters():
            if name in twin:
                assert torch.allclose(parameter.grad, twin[name].grad, rtol=1e-3, atol=1e-6)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.allclose(p, twin[name], atol=1e-3) for name, p in model.named_parameters() if name in twin)


def test_a_trainer_keeps_the_zeros_and_trains_the_adapters(tmp_path):
    base = pruned()
    masks = zeros_of(base)
    model = adapted(base, init_lora_weights=True, lora_dropout=0.1)
    before = weights(model)
    trainer(tmp_path, KeepZerosCallback(), model=model).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name
    assert_sparse(model.merge_and_unload(), masks)


def test_resume_is_exact(tmp_path):
    assert_resume_is_exact(tmp_path, adapted, KeepZerosCallback)


def test_a_saved_adapter_is_a_plain_one_that_is_masked_again(tmp_path):
    base = pruned()
    plain, masks = copy.deepcopy(base), zeros_of(base)
    model = adapted(base).eval()
    mask_lora(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    assert not torch.allclose(logits(loaded), logits(model), atol=1e-3)
    mask_lora(loaded)
    assert torch.equal(logits(loaded), logits(model))
    assert_sparse(loaded.merge_and_unload(), masks)


def test_several_adapters_are_masked_also_one_that_is_added_later():
    base = pruned()
    masks = zeros_of(base)
    model = adapted(base, "first").eval()
    mask_lora(model)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=ROLES, init_lora_weights=False))
    assert mask_lora(model) == 2 * len(base.model.layers)
    outputs = []
    for name in ("first", "second"):
        model.set_adapter(name)
        outputs.append(logits(model))
        model.merge_adapter()
        assert torch.allclose(logits(model), outputs[-1], atol=1e-5)
        model.unmerge_adapter()
    assert not torch.allclose(*outputs, atol=1e-3)
    model.base_model.set_adapter(["first", "second"])
    both = logits(model)
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), both, atol=1e-5)
    assert_sparse(merged, masks)


def test_a_weight_that_is_tied_to_two_layers():
    base = pruned()
    base.model.layers[1].self_attn.q_proj.weight = base.model.layers[0].self_attn.q_proj.weight
    masks = zeros_of(base)
    model = adapted(base)
    assert mask_lora(model) == 2 * len(base.model.layers)
    assert_sparse(model.merge_and_unload(), masks)


def test_other_readers_of_adapters_see_the_masked_update():
    base = pruned()
    weight = base.model.layers[0].self_attn.q_proj.weight
    model = adapted(base)
    mask_lora(model)
    layer = base.model.layers[0].self_attn.q_proj
    effective, left_out = with_adapters(layer, weight.detach())
    assert left_out == []
    assert torch.equal(effective == 0, weight == 0)
    assert torch.equal(effective, weight + layer.get_delta_weight("default"))
    assert repr(layer).startswith("lora.MaskedLinear")
    assert type(layer).__module__ == "peft.tuners.lora.layer"


def test_disabled_adapters_give_the_base_model():
    base = pruned().eval()
    expected = logits(base)
    model = adapted(base).eval()
    mask_lora(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


def test_conv1d_layers_and_biases():
    base = pruned("gpt2")
    masks = {name: p.detach() == 0 for name, p in base.named_parameters() if "c_attn.weight" in name}
    model = adapted(base, target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True).eval()
    assert mask_lora(model) == len(masks)
    before = logits(model)
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), before, atol=1e-5)
    state = dict(merged.named_parameters())
    assert all((state[name][mask] == 0).all() for name, mask in masks.items())


def test_an_adapter_of_a_dense_layer_is_left_alone(tmp_path):
    model = adapted(tiny("llama"), init_lora_weights=True)
    assert mask_lora(model) == 0
    with pytest.warns(NoEffectWarning, match="no trained or adapted weight in the blocks of the model is 0"):
        trainer(tmp_path, KeepZerosCallback(), model=model, max_steps=1).train()


def test_dora_is_refused():
    with pytest.raises(ValueError, match=r"must be plain LoRA, got DoraLinearVariant in .*q_proj"):
        mask_lora(adapted(use_dora=True, target_modules=["q_proj"]))


def test_other_adapters_are_refused(tmp_path):
    model = peft.get_peft_model(pruned(), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match=r"must be LoRA of linear layers that are not .* got Linear of peft.*ia3"):
        trainer(tmp_path, KeepZerosCallback(), model=model).train()


def test_adapters_of_experts_are_refused():
    model = adapted(pruned("mixtral"), target_parameters=["mlp.experts.down_proj"], init_lora_weights=True)
    with pytest.raises(ModelError, match="adapters must be on linear layers, got one on the parameters of"):
        mask_lora(model)


def test_a_merged_adapter_is_refused():
    model = adapted()
    model.merge_adapter()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data[0] = 0
    with pytest.raises(ValueError, match="must not be merged yet, got merged ones in "):
        mask_lora(model)


def test_another_forward_and_an_adapter_for_each_sample_are_refused():
    model = adapted()
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    layer.forward = layer.forward
    with pytest.raises(ValueError, match="must have the forward of their class, got another one in "):
        mask_lora(model)
    del layer.forward
    mask_lora(model)
    with pytest.raises(ValueError, match="adapter_names must be None for masked LoRA layers"):
        model.eval()(Tokens(2).ids, adapter_names=["default", "default"])


def test_fsdp_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_farms.callbacks.keep_zeros.uses_fsdp", lambda args: True)
    with pytest.raises(ValueError, match="weights must be whole on every process for KeepZerosCallback with adapters"):
        trainer(tmp_path, KeepZerosCallback(), model=adapted()).train()


def test_sharded_weights_are_refused(tmp_path, monkeypatch):
    run = trainer(tmp_path, model=adapted())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"on every process for KeepZerosCallback with adapters, got FSDP\. Use DDP"):
        KeepZerosCallback().on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=None)
