"""Casts and moves of a selective model: the weights change their dtype, the slices stay in float32."""

import copy

import pytest
import torch
from models import tiny
from s2ft_layers import draw, matrix, part, plain, selective
from s2ft_steps import same, state, train
from torch import nn
from trainers import Tokens, arguments
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from hf_farms import S2FTCallback, S2FTConfig, apply_s2ft, restore
from hf_farms.s2ft.surgery import selective_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

CASTS = {
    "to(bfloat16)": (lambda m: m.to(torch.bfloat16), torch.bfloat16),
    "to(float16)": (lambda m: m.to(torch.float16), torch.float16),
    "bfloat16()": (lambda m: m.bfloat16(), torch.bfloat16),
    "half()": (lambda m: m.half(), torch.float16),
    "type()": (lambda m: m.type(torch.bfloat16), torch.bfloat16),
    "to(device, dtype)": (lambda m: m.to("cpu", torch.bfloat16), torch.bfloat16),
    "to(dtype=, device=)": (lambda m: m.to(dtype=torch.float16, device=torch.device("cpu")), torch.float16),
    "to(tensor)": (lambda m: m.to(torch.zeros(1, dtype=torch.bfloat16)), torch.bfloat16),
    "_apply": (lambda m: m._apply(lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t), torch.bfloat16),
}
FORMS = pytest.mark.parametrize("write_back", [True, False], ids=["one", "two"])


def a_step(layer):
    """So that slice and weight are no longer what they were, and there is a gradient."""
    optimizer = torch.optim.AdamW([layer.selected], lr=0.1)
    layer(draw(4, 7, dtype=layer.weight.dtype)).float().square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D], ids=["linear", "conv1d"])
@FORMS
def test_a_cast_leaves_slice_and_gradient_alone(cast, kind, write_back):
    call, dtype = CASTS[cast]
    layer = selective(plain(kind), [1, 3], inputs=True, write_back=write_back)
    a_step(layer)
    twin, parameter = copy.deepcopy(layer), layer.selected
    twin.selected.grad = layer.selected.grad.clone()
    assert call(layer) is layer
    assert layer.selected is parameter
    assert layer.selected.dtype == layer.selected.grad.dtype == torch.float32
    assert torch.equal(layer.selected, twin.selected)
    assert torch.equal(layer.selected.grad, twin.selected.grad)
    assert (layer.weight.dtype, layer.bias.dtype, layer.s2ft_index.dtype) == (dtype, dtype, torch.int64)
    assert torch.equal(layer.weight, twin.weight.to(dtype))
    assert torch.equal(layer.state_dict()["weight"], twin.state_dict()["weight"].to(dtype))
    y, expected = layer(draw(4, 7, dtype=dtype)), twin(draw(4, 7))
    assert y.dtype == dtype
    assert torch.allclose(y.float(), expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("half", ["bfloat16", "half"])
def test_cast_back_the_weight_has_the_exact_slice_again(half):
    layer = selective(plain(), [1, 3], inputs=True)
    a_step(layer)
    before = matrix(layer).clone()
    getattr(layer, half)().float()
    assert torch.equal(layer.slice_of_weight(), part(before, [1, 3], inputs=True))
    assert not torch.equal(matrix(layer), before)  # the frozen rest was rounded, as in any model


def test_wider_casts_are_followed():
    layer = selective(plain(dtype=torch.bfloat16), [1, 3], inputs=True)
    a_step(layer)
    slices = layer.selected.detach().clone()
    assert layer.float().selected.dtype == torch.float32
    assert torch.equal(layer.slice_of_weight(), slices)
    assert layer.double().selected.dtype == torch.float64
    assert layer.half().selected.dtype == torch.float64
    assert torch.equal(layer.float().selected, slices)


@FORMS
def test_training_goes_on_after_a_cast(write_back):
    """The optimizer still holds the slice, its state fits, and the steps are those of the slice."""
    layer = selective(plain(), [1, 3], inputs=True, write_back=write_back)
    optimizer = a_step(layer)
    layer.bfloat16()
    before = layer.selected.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        layer(draw(4, 7, dtype=torch.bfloat16)).float().square().sum().backward()
        optimizer.step()
    assert not torch.equal(layer.selected, before)
    written = torch.equal(layer.slice_of_weight(), layer.selected.detach().bfloat16())
    assert written == write_back


@FORMS
@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "outputs"])
def test_the_meta_device_and_back(inputs, write_back):
    """Weights are lost there and loaded again; the channels are known all the time."""
    layer = selective(plain(), [1, 3], inputs=inputs, write_back=write_back)
    given = plain(seed=5).state_dict()
    layer.to("meta")
    assert layer(torch.zeros(4, 7, device="meta")).shape == (4, 5)
    assert layer.state_dict()["weight"].is_meta
    layer.bfloat16()
    assert (layer.weight.dtype, layer.selected.dtype) == (torch.bfloat16, torch.float32)
    layer.float().to_empty(device="cpu")
    layer.load_state_dict(given)
    assert layer.s2ft_index.tolist() == [1, 3]
    assert torch.equal(layer.selected, part(given["weight"], [1, 3], inputs))
    assert torch.equal(layer(draw(4, 7)), nn.functional.linear(draw(4, 7), given["weight"], given["bias"]))


def test_moves_keep_parameters_where_torch_is_told_to_swap_them():
    layer = selective(plain(), [1, 3], inputs=True)
    a_step(layer)
    expected, gradient = layer.selected.detach().clone(), layer.selected.grad.clone()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.bfloat16()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.selected, expected)
    assert torch.equal(layer.selected.grad, gradient)


def test_channels_are_no_buffers():
    """DDP broadcasts buffers in every forward pass, and casts reach them."""
    model = tiny("llama")
    before = dict(model.named_buffers()).keys()
    apply_s2ft(model, S2FTConfig(budget=0.1, write_back=False))
    assert dict(model.named_buffers()).keys() == before


@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_a_model_cast_to_half_precision_and_restored(layout, ids):
    model = tiny("llama")
    apply_s2ft(model, S2FTConfig(budget=0.1, layout=layout))
    train(model, ids[0])
    expected = {name: tensor.bfloat16() for name, tensor in state(model).items()}
    model.to(torch.bfloat16)
    assert same(state(model), expected)
    train(model, ids[0], steps=1)
    assert all(layer.selected.dtype == torch.float32 for _, layer in selective_layers(model))
    after = state(model)
    assert same(state(restore(model)), after)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


# -- evaluation in half precision, after which a Trainer leaves the model as it is


def trainer(folder, model, callback=None, **options):
    return Trainer(
        model=model,
        args=arguments(folder, **{"max_steps": 2, "per_device_train_batch_size": 4, **options}),
        train_dataset=Tokens(),
        eval_dataset=Tokens(8),
        callbacks=[callback] if callback else [],
    )


@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_slices_survive_the_evaluation(option, tmp_path):
    model = tiny("llama")
    run = trainer(tmp_path, model, S2FTCallback(S2FTConfig(budget=0.1)), **{option: True})
    run.train()
    slices = [layer.selected.detach().clone() for _, layer in selective_layers(model)]
    run.evaluate()
    dtype = torch.bfloat16 if option == "bf16_full_eval" else torch.float16
    for (_, layer), old in zip(selective_layers(model), slices, strict=True):
        assert (layer.weight.dtype, layer.selected.dtype) == (dtype, torch.float32)
        assert torch.equal(layer.selected, old)
        assert torch.equal(layer.slice_of_weight(), old.to(dtype))
    # Frozen weights are what they are in a plain Trainer: rounded, and they stay so.
    other = tiny("llama")
    trainer(tmp_path, other, **{option: True}).evaluate()
    assert torch.equal(model.model.embed_tokens.weight, other.model.embed_tokens.weight)


@pytest.mark.parametrize("write_back", [True, False], ids=["one", "two"])
def test_training_goes_on_as_if_nothing_had_been_evaluated(write_back, tmp_path):
    """With weights in bfloat16 already that cast is none, and nothing else may be."""
    found = []
    for evaluated in (False, True):
        model = tiny("llama", dtype=torch.bfloat16)
        run = trainer(tmp_path, model, S2FTCallback(S2FTConfig(budget=0.1, write_back=write_back)), bf16_full_eval=True)
        run.train()
        if evaluated:
            run.evaluate()
            run.predict(Tokens(8))
        run.train()
        found.append({**state(model), **{name: layer.selected.clone() for name, layer in selective_layers(model)}})
    assert same(*found)
