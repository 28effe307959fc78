"""One selective layer beside the plain one."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_farms.s2ft.layers import SelectiveLayer, selective_class

FORMS = pytest.mark.parametrize("kind", [nn.Linear, Conv1D], ids=["linear", "conv1d"])
SIDES = pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "outputs"])
N, M = 7, 5


def plain(kind=nn.Linear, n=N, m=M, *, bias=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(n, m, bias=bias) if kind is nn.Linear else Conv1D(m, n)
    assert bias or kind is nn.Linear
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.to(dtype)


def selective(layer, index, *, inputs, write_back=True):
    """What surgery does to one layer."""
    layer.requires_grad_(False)
    layer.s2ft_orders, layer.s2ft_plain_class = {}, type(layer)
    layer.__class__ = selective_class(type(layer))
    layer.select(torch.as_tensor(index), inputs=inputs, write_back=write_back)
    return layer


def matrix(layer):
    return layer.weight.detach().mT if isinstance(layer, Conv1D) else layer.weight.detach()


def part(weight, index, inputs):
    return weight[:, index] if inputs else weight[index]


def draw(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(layer, x, direction):
    """Output, and gradients by the input and by the weight's matrix or the slice."""
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * direction).sum().backward()
    if isinstance(layer, SelectiveLayer):
        return y.detach(), x.grad, layer.selected.grad
    return y.detach(), x.grad, layer.weight.grad.mT if isinstance(layer, Conv1D) else layer.weight.grad
