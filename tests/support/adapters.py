"""Models with adapters: trained slices without a training, and the bits of all weights."""

import torch
from families import family_model
from models import tiny
from s2ft_families import scattered

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft, restore
from hf_farms.s2ft.selection import Selection
from hf_farms.s2ft.surgery import selective_layers

WEIGHT = "model.layers.1.mlp.down_proj.weight"


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    """Bits, so that no difference of zeros passes."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8))
        for name, tensor in one.items()
    )


def change_slices(model, seed=1):
    """Change every trained slice, as a training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in selective_layers(model):
            layer.selected.add_(torch.randn(layer.selected.shape, generator=generator) * 0.1)
    return model


def trained(name="llama", *, dtype=torch.float32, roles=("o", "down"), layout="indexed", seed=1):
    """A base and the same model with trained slices, S2FT still on it."""
    base, model = family_model(name).to(dtype), family_model(name).to(dtype)
    apply_s2ft(model, selection=scattered(model, S2FTConfig(roles=roles, layout=layout)))
    return base, change_slices(model, seed)


def adapters_of(base, count=3, *, roles=("v", "o", "down"), budget=0.1):
    """Adapters of one base with overlapping selections, and the states of their trained models."""
    adapters, states = [], []
    for seed in range(count):
        model = tiny("llama", dtype=base.dtype)
        apply_s2ft(model, S2FTConfig(budget=budget, roles=roles, seed=seed))
        restore(change_slices(model, seed))
        adapters.append(S2FTAdapter.from_model(model))
        states.append(state(model))
    return adapters, states


def one_layer(channels, *, roles=("down",), layer="model.layers.1.mlp.down_proj", dtype=torch.float32, seed=1, **sizes):
    """An adapter of some channels of one layer of the tiny Llama."""
    model = tiny("llama", dtype=dtype, **sizes)
    apply_s2ft(model, selection=Selection(S2FTConfig(roles=roles), {layer: tuple(channels)}))
    return S2FTAdapter.from_model(change_slices(model, seed))
