"""One selective layer against the plain one: values, gradients, what is kept, and the weight after a step."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from models import NEEDS_MUON
from s2ft_layers import FORMS, SIDES, M, N, draw, gradients, matrix, part, plain, selective
from torch import nn
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.pytorch_utils import Conv1D

from hf_farms.s2ft.layers import (
    SelectiveConv1D,
    SelectiveLayer,
    SelectiveLinear,
    ordered_class,
    selective_class,
)
from hf_farms.s2ft.products import TrainedInputs, TrainedOutputs

INDICES = [[0], [1, 4], [2, 3, 4], [0, 1, 2, 3, 4]]  # scattered, together, first, all outputs
SHAPES = [(N,), (6, N), (1, N), (2, 3, N), (2, 1, 3, N), (0, N), (2, 0, N)]


@pytest.mark.parametrize(
    ("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)], ids=["linear", "without bias", "conv1d"]
)
@SIDES
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_values_and_gradients_are_those_of_the_plain_layer(kind, inputs, index, bias):
    layer = plain(kind, bias=bias)
    for shape in SHAPES:
        x, direction = draw(*shape), draw(*shape[:-1], M, seed=2)
        for write_back in (True, False):
            full = copy.deepcopy(layer)
            y, by_x, by_weight = gradients(full, x, direction)
            found = gradients(
                selective(copy.deepcopy(layer), index, inputs=inputs, write_back=write_back), x, direction
            )
            for value, expected in zip(found, (y, by_x, part(by_weight, index, inputs)), strict=True):
                assert value.shape == expected.shape
                assert torch.allclose(value, expected, rtol=1e-6, atol=1e-6)


@SIDES
def test_the_whole_width_may_be_trained(inputs):
    index = list(range(N if inputs else M))
    full, x, direction = plain(), draw(6, N), draw(6, M)
    expected = gradients(copy.deepcopy(full), x, direction)
    found = gradients(selective(full, index, inputs=inputs), x, direction)
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(found, expected, strict=True))


@FORMS
@SIDES
@pytest.mark.parametrize("index", [[1, 4], [1, 2]], ids=["scattered", "together"])
def test_gradients_in_float64_against_differences(kind, inputs, index):
    layer = selective(plain(kind, dtype=torch.float64), index, inputs=inputs)
    function = TrainedInputs if inputs else TrainedOutputs

    def call(x, selected):
        with torch.no_grad():
            weight = layer.matrix.clone()
            weight[(slice(None), index) if inputs else index] = selected
        return function.apply(x, selected, weight, layer.bias, layer.s2ft_index, layer.s2ft_start)

    x = draw(3, 2, N, dtype=torch.float64).requires_grad_()
    assert layer.s2ft_start == (1 if index == [1, 2] else None)
    assert gradcheck(call, (x, layer.selected))
    two = selective(plain(kind, dtype=torch.float64), index, inputs=inputs, write_back=False)
    assert gradcheck(lambda x, selected: torch.func.functional_call(two, {"selected": selected}, x), (x, two.selected))


@SIDES
def test_second_derivatives_are_refused_and_not_wrong(inputs):
    layer = selective(plain(), [1, 2], inputs=inputs)
    x = draw(3, N).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@SIDES
def test_inputs_that_are_not_contiguous(inputs):
    layer = plain()
    for x in (draw(N, 6).mT, draw(3, N, 2).transpose(1, 2), draw(6, 2 * N)[:, ::2], draw(N).expand(6, N)):
        direction = draw(*x.shape[:-1], M).transpose(0, -1).contiguous().transpose(0, -1)
        expected = gradients(copy.deepcopy(layer), x, direction)
        found = gradients(selective(copy.deepcopy(layer), [1, 3], inputs=inputs), x, direction)
        assert torch.allclose(found[2], part(expected[2], [1, 3], inputs), rtol=1e-6, atol=1e-6)
        assert torch.allclose(found[1], expected[1], rtol=1e-6, atol=1e-6)


@FORMS
@SIDES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("write_back", [True, False], ids=["one", "two"])
def test_half_precision(kind, inputs, dtype, write_back):
    full, x, direction = plain(kind, dtype=dtype), draw(6, N, dtype=dtype), draw(6, M, dtype=dtype)
    y, by_x, by_weight = gradients(copy.deepcopy(full), x, direction)
    layer = selective(full, [1, 3], inputs=inputs, write_back=write_back)
    assert layer.selected.dtype == torch.float32
    found = gradients(layer, x, direction)
    assert [value.dtype for value in found] == [dtype, dtype, torch.float32]
    assert torch.equal(found[0], y)
    assert torch.allclose(found[1], by_x, rtol=1e-2, atol=1e-2)
    assert torch.allclose(found[2], part(by_weight, [1, 3], inputs).float(), rtol=1e-2, atol=1e-2)


@SIDES
@pytest.mark.parametrize("write_back", [True, False], ids=["one", "two"])
def test_autocast(inputs, write_back):
    full, x = plain(), draw(6, N)
    layer = selective(copy.deepcopy(full), [1, 3], inputs=inputs, write_back=write_back)
    results = []
    for module in (full, layer):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
            assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        results.append((y.detach(), module.selected.grad if module is layer else module.weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert results[1][1].dtype == torch.float32
    assert torch.allclose(results[1][1], part(results[0][1], [1, 3], inputs), rtol=2e-2, atol=2e-2)


@SIDES
def test_without_gradients_nothing_is_kept(inputs):
    layer = selective(plain(), [1, 3], inputs=inputs)
    with torch.no_grad():
        y = layer(draw(6, N))
    assert not y.requires_grad
    assert torch.equal(y, layer(draw(6, N)).detach())
    layer.selected.requires_grad_(False)
    assert not layer(draw(6, N)).requires_grad


@SIDES
def test_a_layer_used_twice_adds_up(inputs):
    full = plain(m=N)
    x, direction = draw(6, N), draw(6, N, seed=2)
    expected = gradients(nn.Sequential(full, nn.Tanh(), full)[0], x, direction)
    full.weight.grad = None

    def run(layer):
        (layer(layer(x).tanh()) * direction).sum().backward()

    run(full)
    expected = full.weight.grad
    layer = selective(full, [1, 3], inputs=inputs)
    run(layer)
    assert torch.allclose(layer.selected.grad, part(expected, [1, 3], inputs), rtol=1e-5, atol=1e-5)


# -- what is kept for the backward pass


def kept_bytes(call, *modules):
    """Bytes of the different storages that are saved, parameters, buffers and indices left out."""
    theirs = [t for m in modules for t in [*m.parameters(), *m.buffers()]]
    theirs += [layer.s2ft_index for m in modules for layer in m.modules() if isinstance(layer, SelectiveLayer)]
    own = {t.untyped_storage().data_ptr() for t in theirs}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call()
    assert y.requires_grad
    return sum(size for size, _ in kept.values())


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("index", [[3, 8, 20], [0, 1, 2]], ids=["scattered", "together"])
def test_bytes_kept_are_those_of_the_theory(kind, dtype, index):
    n, m, t, size = 40, 24, 30, dtype.itemsize
    x = draw(2, t // 2, n, dtype=dtype).requires_grad_()
    frozen, full = plain(kind, n, m, dtype=dtype).requires_grad_(False), plain(kind, n, m, dtype=dtype)
    by_input = selective(plain(kind, n, m, dtype=dtype), index, inputs=True)
    by_output = selective(plain(kind, n, m, dtype=dtype), index, inputs=False)
    kept = [kept_bytes(lambda layer=layer: layer(x), layer) for layer in (frozen, full, by_input, by_output)]
    assert kept == [0, t * n * size, t * len(index) * size, t * n * size]


@pytest.mark.parametrize("index", [[3, 8, 20], [0, 1, 2]], ids=["scattered", "together"])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (5, 40)], ids=str)
def test_what_is_kept_does_not_keep_the_input_alive(index, shape):
    layer = selective(plain(n=40, m=24), index, inputs=True)
    x = draw(*shape)
    alive = weakref.ref(x)
    kept = kept_bytes(partial(layer, x), layer)
    assert kept == x[..., index].numel() * 4
    y = layer(x)
    del x
    gc.collect()
    assert alive() is None
    assert y.requires_grad


def test_two_products_keep_the_selected_inputs_and_the_change():
    """The change of the slice is a tensor of its own, `(m, s)`: the price beside the time."""
    layer = selective(plain(n=40, m=24), [3, 8, 20], inputs=True, write_back=False)
    x = draw(30, 40).requires_grad_()
    assert kept_bytes(lambda: layer(x), layer) == 4 * (30 * 3 + 24 * 3)


def decoder_bytes(hidden, heads, inner, selected=None):
    """Bytes that a decoder layer of Llama keeps for each token in bfloat16, tensor by tensor.

    Args:
        selected: trained inputs of o and down together; None: everything is trained.
    """
    half, single = 2, 4
    norms = 2 * (single * hidden + single)  # x in float32, the root
    attention = 4 * half * hidden + single * heads  # q, k, v, output (which o_proj keeps too), log of the sum
    gate = half * 3 * inner  # input and output of the activation, up
    if selected is not None:
        return norms + attention + gate + half * selected
    # For the norms' own weights x / root, for q, k, v and for gate and up the norms' outputs, for down its input.
    return norms + attention + gate + half * (4 * hidden + inner)


def test_bytes_of_a_decoder_layer():
    """At the shapes of Llama-2-7B full fine-tuning keeps 186,504 bytes for each token, S2FT 71% of them."""
    assert decoder_bytes(4096, 32, 11008) == 186_504
    assert decoder_bytes(4096, 32, 11008, 2 * 128 + 177) == 132_586
    hidden, heads, inner, t = 64, 4, 176, 12
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": inner}
    config = LlamaConfig(**sizes, num_hidden_layers=1, attn_implementation="sdpa")
    block = LlamaDecoderLayer(config, 0).bfloat16()
    x = draw(1, t, hidden, dtype=torch.bfloat16).requires_grad_()
    positions = draw(1, t, hidden // heads).bfloat16(), draw(1, t, hidden // heads).bfloat16()
    given = nn.ParameterList(nn.Parameter(p, requires_grad=False) for p in positions)

    def kept():
        return kept_bytes(lambda: block(x, position_embeddings=positions), block, given)

    assert kept() == t * decoder_bytes(hidden, heads, inner)
    for write_back in (True, False):
        block.requires_grad_(False)
        changed = copy.deepcopy(block)
        selective(changed.self_attn.o_proj, list(range(16, 32)), inputs=True, write_back=write_back)
        selective(changed.mlp.down_proj, [3, 4, 90], inputs=True, write_back=write_back)
        found = kept_bytes(partial(changed, x, position_embeddings=positions), changed, given)
        # Two products keep the change of the slices beside it, whatever the number of tokens.
        once = 0 if write_back else 2 * hidden * (16 + 3)
        assert found == t * decoder_bytes(hidden, heads, inner, 16 + 3) + once


# -- after a step of the optimizer

OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "SGD fused": {"lr": 0.1, "fused": True},
    "Adam": {"lr": 0.1},
    "AdamW": {"lr": 0.1, "foreach": False},
    "AdamW foreach": {"lr": 0.1, "foreach": True},
    "AdamW fused": {"lr": 0.1, "fused": True},
    "Adagrad": {"lr": 0.1},
    "Adagrad fused": {"lr": 0.1, "fused": True},
    "Adadelta": {"lr": 1.0},
    "Adamax": {"lr": 0.1},
    "RMSprop": {"lr": 0.1},
    "NAdam": {"lr": 0.1},
    "RAdam": {"lr": 0.1},
    "Rprop": {"lr": 0.1},
    "ASGD": {"lr": 0.1},
    "Adafactor": {"lr": 0.1},
    "Muon": {"lr": 0.1},
}


def optimizer_of(name, parameters):
    return getattr(torch.optim, name.split()[0])(parameters, **OPTIMIZERS[name])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_MUON if name == "Muon" else ()) for name in OPTIMIZERS]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_after_every_step_the_weight_is_the_slice(name, dtype):
    layers = [
        selective(plain(kind, dtype=dtype), index, inputs=inputs)
        for kind in (nn.Linear, Conv1D)
        for index, inputs in (([1, 3], True), ([2, 3], False))
    ]
    before = [matrix(layer).clone() for layer in layers]
    # The same steps on the slices alone.
    twins = [layer.selected.detach().clone().requires_grad_() for layer in layers]
    optimizer, other = optimizer_of(name, [layer.selected for layer in layers]), optimizer_of(name, twins)
    for step in range(2):
        optimizer.zero_grad()
        sum(layer(draw(4, N, dtype=dtype, seed=step)).float().square().sum() for layer in layers).backward()
        for layer, twin in zip(layers, twins, strict=True):
            twin.grad = layer.selected.grad.clone()
        optimizer.step()
        other.step()
        for layer, twin, old in zip(layers, twins, before, strict=True):
            assert torch.equal(layer.selected, twin)
            weight, index = matrix(layer), layer.s2ft_index
            assert torch.equal(part(weight, index, layer.s2ft_inputs), twin.detach().to(dtype))
            assert not torch.equal(weight, old)
            rest = torch.ones(weight.shape, dtype=torch.bool)
            rest[(slice(None), index) if layer.s2ft_inputs else index] = False
            assert torch.equal(weight[rest], old[rest])


def test_only_the_layers_of_the_optimizer_follow():
    first, second = (selective(plain(seed=seed), [1, 3], inputs=True) for seed in (0, 1))
    with torch.no_grad():
        second.selected.add_(1)
    before = matrix(second).clone()
    first(draw(4, N)).sum().backward()
    torch.optim.SGD([first.selected], lr=0.1).step()
    assert torch.equal(matrix(second), before)
    assert torch.equal(first.slice_of_weight(), first.selected)


def test_weights_are_not_changed_where_they_must_not_be():
    layer = selective(plain(), [1, 3], inputs=True, write_back=False)
    before, x = matrix(layer).clone(), draw(4, N)
    layer(x).square().sum().backward()
    torch.optim.SGD([layer.selected], lr=0.1).step()
    assert torch.equal(matrix(layer), before)
    changed = before.clone()
    changed[:, [1, 3]] = layer.selected.detach()
    assert torch.allclose(layer(x), nn.functional.linear(x, changed, layer.bias), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.state_dict()["weight"], changed)
    layer.release()
    assert torch.equal(layer.weight, changed)


def test_small_steps_are_not_lost_in_bfloat16():
    """|w| = 0.02 and steps of 5e-5: less than half of the distance between two bfloat16 numbers."""
    layer = plain(dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(0.02)
    layer = selective(layer, [1, 3], inputs=True)
    start, optimizer = layer.weight.detach().clone(), torch.optim.SGD([layer.selected], lr=5e-5)
    pure = start.clone()
    for _ in range(40):
        layer.selected.grad = torch.ones_like(layer.selected)
        optimizer.step()
        pure -= 5e-5
    assert torch.equal(pure, start)
    expected = (start.float()[:, [1, 3]] - 40 * 5e-5).bfloat16()
    assert torch.allclose(layer.weight[:, [1, 3]].float(), expected.float(), rtol=2**-7)
    assert not torch.equal(layer.weight[:, [1, 3]], start[:, [1, 3]])


def test_a_weight_changed_between_forward_and_backward_is_noticed():
    layer = selective(plain(), [1, 3], inputs=True)
    y = layer(draw(4, N).requires_grad_())
    layer.selected.grad = torch.ones_like(layer.selected)
    torch.optim.SGD([layer.selected], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# -- state dicts and copies


@FORMS
@SIDES
@pytest.mark.parametrize("write_back", [True, False], ids=["one", "two"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_state_dicts_are_plain_both_ways(kind, inputs, write_back, assign):
    layer = selective(plain(kind), [1, 3], inputs=inputs, write_back=write_back)
    assert layer.state_dict().keys() == plain(kind).state_dict().keys()
    given = plain(kind, seed=5).state_dict()
    assert not any(layer.load_state_dict(copy.deepcopy(given), strict=True, assign=assign))
    assert all(torch.equal(tensor, given[name]) for name, tensor in layer.state_dict().items())
    weight = given["weight"].mT if kind is Conv1D else given["weight"]
    assert torch.equal(layer.selected, part(weight, [1, 3], inputs))
    x = draw(4, N)
    again = plain(kind)
    again.load_state_dict(given)
    assert torch.allclose(layer(x), again(x), atol=1e-6)


def test_a_state_dict_without_the_weight_says_so():
    layer = selective(plain(), [1, 3], inputs=True)
    assert layer.load_state_dict({"bias": torch.zeros(M)}, strict=False) == (["weight"], [])
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict({"weight": torch.zeros(M, N + 1), "bias": torch.zeros(M)})


def test_a_copy_follows_its_own_optimizer():
    layer = selective(plain(), [1, 3], inputs=True)
    twin, before = copy.deepcopy(layer), matrix(layer).clone()
    twin(draw(4, N)).sum().backward()
    torch.optim.SGD([twin.selected], lr=0.1).step()
    assert torch.equal(matrix(layer), before)
    assert torch.equal(twin.slice_of_weight(), twin.selected)
    assert not torch.equal(twin.slice_of_weight(), layer.slice_of_weight())


def test_classes():
    class Other(nn.Linear):
        pass

    assert (selective_class(nn.Linear), selective_class(Conv1D)) == (SelectiveLinear, SelectiveConv1D)
    assert selective_class(Other) is None
    assert ordered_class(nn.LayerNorm) is ordered_class(nn.LayerNorm)
    assert issubclass(ordered_class(nn.LayerNorm), nn.LayerNorm)
    assert isinstance(selective(plain(), [0], inputs=True), nn.Linear)
