"""Slices in weights of which each process has a part, as ZeRO-3 keeps them; without DeepSpeed."""

from types import SimpleNamespace

import pytest
import torch
from models import tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import ModelError
from hf_farms.s2ft.engines import zero3
from hf_farms.s2ft.layers import selective_class

LINEAR, CONV1D = lambda: nn.Linear(5, 7), lambda: Conv1D(7, 5)


def selective(make, inputs):
    torch.manual_seed(0)
    layer = make()
    layer.s2ft_orders, layer.s2ft_plain_class = {}, type(layer)
    layer.__class__ = selective_class(type(layer))
    layer.select(torch.tensor([0, 2, 4] if inputs else [1, 3, 6]), inputs=inputs, write_back=True)
    return layer


def partition(weight, processes, rank):
    """Leave a process its part of the elements, and nothing of the whole."""
    whole = weight.detach().flatten()
    length = -(-len(whole) // processes)
    part = torch.full((length,), torch.nan)
    own = whole[rank * length : (rank + 1) * length]
    part[: len(own)] = own
    part.ds_numel = length
    weight.ds_shape, weight.ds_numel, weight.ds_process_group = tuple(weight.shape), len(whole), None
    weight.ds_tensor, weight.ds_status = part, SimpleNamespace(name="NOT_AVAILABLE")
    weight.data = torch.empty(0)


@pytest.mark.parametrize("make", [LINEAR, CONV1D])
@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3, 40])
def test_each_process_writes_its_own_elements(make, inputs, processes, monkeypatch):
    layer = selective(make, inputs)
    layer.selected.data = torch.randn(layer.selected.shape)
    expected = selective(make, inputs)
    expected.selected.data = layer.selected.data
    expected.after_step()
    size, parts = layer.weight.numel(), []
    for rank in range(processes):
        own = selective(make, inputs)
        own.selected.data = layer.selected.data
        partition(own.weight, processes, rank)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        own.after_step()
        parts.append(own.weight.ds_tensor)
    whole = torch.cat(parts)
    assert torch.equal(whole[:size], expected.weight.detach().flatten())
    assert whole[size:].isnan().all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: setattr(w, "ds_secondary_tensor", w), r"second copies of weights \(zero_hpz_partition_size\)"),
        (lambda w: setattr(w.ds_tensor, "ds_numel", 0), r"weights on a disk \(offload_param to nvme\)"),
        (lambda w: setattr(w, "ds_tensor", torch.zeros(3, dtype=torch.int8)), "weights that are stored as torch.int8"),
    ],
)
def test_weights_that_are_kept_elsewhere_are_refused(change, why):
    layer = selective(LINEAR, True)
    partition(layer.weight, 2, 0)
    change(layer.weight)
    with pytest.raises(ModelError, match=f"kept once, in memory .* got {why}") as caught:
        zero3.ZERO3.write(layer, layer.selected, layer.weight)
    assert "Remove that entry" in caught.value.hint


def test_without_a_view_of_the_weight_the_gradients_are_the_same(monkeypatch):
    x = torch.randn(2, 3, 5, requires_grad=True)
    gradients = []
    for keeps in (True, False):
        monkeypatch.setattr(type(zero3.PLAIN), "keeps_weights", keeps)
        layer = selective(LINEAR, True)
        y = layer(x)
        y.square().sum().backward()
        gradients.append((y.detach(), layer.selected.grad, x.grad.clone()))
        x.grad = None
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_adapters_and_strategies_with_data_need_whole_weights(monkeypatch):
    model = tiny("llama")
    adapter_base = tiny("llama")
    apply_s2ft(adapter_base, S2FTConfig(budget=0.1))
    adapter = S2FTAdapter.from_model(adapter_base)
    for parameter in model.parameters():
        partition(parameter, 1, 0)
    with pytest.raises(ModelError, match=r"got one that ZeRO-3 has partitioned in model\.embed_tokens"):
        adapter.merge(model)
    config = S2FTConfig(budget=0.1, strategy="activation")
    with pytest.raises(ModelError, match="whole for strategy 'activation', got ones that ZeRO-3") as caught:
        apply_s2ft(model, config, calibration=[torch.zeros(1, 8, dtype=torch.long)])
    assert "pass selection=" in caught.value.hint
    with pytest.raises(ModelError, match=r"to be overwritten, got a sharded one in model\.layers\.0"):
        ModelBlockSource(model).open(0).layers[0].write_(torch.zeros(32, 32))
