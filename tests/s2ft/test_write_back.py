"""Slices that something other than an optimizer changes, and the order in which layers follow."""

import copy
import gc
import pickle
from dataclasses import replace

import pytest
import torch
from models import tiny
from s2ft_steps import same, state, train
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hf_farms import S2FTConfig, apply_s2ft, restore, write_back
from hf_farms.errors import NoEffectWarning
from hf_farms.s2ft.layers import _LAYERS
from hf_farms.s2ft.saving import load_selection, save_selection
from hf_farms.s2ft.surgery import selective_layers

CONFIG = S2FTConfig(budget=0.1)
TWO = replace(CONFIG, write_back=False)
CONFIGS = pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, layout="permuted"), TWO, replace(TWO, layout="permuted")],
    ids=["indexed", "permuted", "two", "two, permuted"],
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def selective(config=CONFIG, **options):
    model = tiny("llama", **options)
    apply_s2ft(model, config)
    return model


def layers(model):
    return [layer for _, layer in selective_layers(model)]


def follows(model):
    return all(torch.equal(layer.slice_of_weight(), layer.selected.to(layer.weight.dtype)) for layer in layers(model))


def halve(model):
    for layer in layers(model):
        layer.selected.data.mul_(0.5)


@CONFIGS
@DTYPES
def test_the_forward_pass_and_every_state_dict_agree_after_it(config, dtype, ids):
    model = selective(config, dtype=dtype)
    halve(model)
    assert write_back(model) is model
    assert follows(model) == config.write_back
    plain = tiny("llama", dtype=dtype)
    plain.load_state_dict(model.state_dict())
    a, b = model(ids[0]).logits, plain(ids[0]).logits
    assert float((a - b).detach().norm() / b.detach().norm()) < (1e-5 if dtype == torch.float32 else 3e-2)
    assert not torch.equal(b, tiny("llama", dtype=dtype)(ids[0]).logits)


@CONFIGS
def test_what_is_saved_is_the_slice_also_before_it(config, tmp_path):
    """State dict, `save_pretrained` and `restore` agree; reading a state dict changes nothing."""
    model = selective(config)
    before = [layer.weight.detach().clone() for layer in layers(model)]
    halve(model)
    saved = state(model)
    assert all(torch.equal(layer.weight, old) for layer, old in zip(layers(model), before, strict=True))
    model.save_pretrained(tmp_path)
    assert same(type(model).from_pretrained(tmp_path).state_dict(), saved)
    write_back(model)
    assert same(state(model), saved)
    restore(model)
    assert same(state(model), saved)
    assert not same(saved, state(tiny("llama")))


def test_state_dicts_are_the_weights_themselves_where_the_weight_holds_the_slice():
    model = selective()
    for name, layer in selective_layers(model):
        assert model.state_dict()[f"{name}.weight"].data_ptr() == layer.weight.data_ptr()


def test_a_state_dict_with_slices_in_it():
    """Whose slices are more exact than its weights: they are what is loaded, and the weights follow."""
    model, other = selective(dtype=torch.bfloat16), selective(dtype=torch.bfloat16)
    halve(other)
    slices = {f"{name}.selected": layer.selected.detach().clone() for name, layer in selective_layers(other)}
    for given in (slices, {name: p.detach().clone() for name, p in other.named_parameters()}):
        fresh = copy.deepcopy(model)
        fresh.load_state_dict(given, strict=given is not slices)
        assert follows(fresh)
        assert all(torch.equal(a.selected, b.selected) for a, b in zip(layers(fresh), layers(other), strict=True))
        assert same(state(fresh), state(other))


def test_averages_of_models(ids):
    """SWA and EMA of torch average parameters one by one, in the weights' own dtype."""
    model = selective(dtype=torch.bfloat16)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        train(model, ids[0], steps=1)
        averaged.update_parameters(model)
    assert write_back(averaged) is averaged
    assert follows(averaged)
    assert layers(averaged)[0].selected.dtype == torch.float32
    assert not torch.equal(layers(averaged)[0].selected, layers(model)[0].selected)
    assert follows(model)


def test_a_search_without_gradients(ids):
    model = selective()

    def loss():
        with torch.no_grad():
            return float(model(input_ids=ids[0], labels=ids[0]).loss)

    before = loss()
    halve(model)
    assert loss() == before
    write_back(model)
    assert loss() != before


def test_a_plain_model_has_nothing_to_write(llama):
    before = state(llama)
    with pytest.warns(NoEffectWarning, match=r"LlamaForCausalLM has no S2FT on it\. Call apply_s2ft\(model\) first"):
        write_back(llama)
    assert same(state(llama), before)


# -- the order of the layers


def order(model):
    names = {layer: name for name, layer in selective_layers(model)}
    return [names[layer] for layer in _LAYERS if layer in names]


def in_order(model):
    return order(model) == [name for name, _ in selective_layers(model)]


@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_layers_follow_in_the_order_of_the_model(layout, tmp_path):
    """Also with the selection of a file, which has its layers by name: 10 before 2."""
    config = replace(CONFIG, roles=("v", "o", "down"), layout=layout)
    model = tiny("llama", num_hidden_layers=11)
    save_selection(apply_s2ft(model, config), tmp_path)
    assert len(order(model)) == 33
    assert in_order(model)
    again = tiny("llama", num_hidden_layers=11)
    apply_s2ft(again, selection=load_selection(tmp_path))
    assert order(again) == order(model) == [name for name, _ in selective_layers(again)]


def test_layers_of_copies_follow_in_order_too():
    model = selective()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))):
        assert in_order(twin)
        assert len(order(twin)) == 6


def test_a_model_that_is_made_selective_again_is_in_order():
    model = tiny("llama")
    apply_s2ft(model, replace(CONFIG, roles=("down",)))
    restore(model)
    assert order(model) == []
    apply_s2ft(model, CONFIG)
    assert in_order(model)
    assert len(order(model)) == 6


def test_layers_that_are_gone_are_not_kept_alive():
    gc.collect()
    before = list(_LAYERS)
    model, twin = selective(), selective()
    del model
    gc.collect()
    assert list(_LAYERS) == [*before, *layers(twin)]
