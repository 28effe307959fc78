"""Check the channels of a selection, and find the modules that they belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_farms.blocks import LayerMetadata
from hf_farms.blocks.coupling import module_channels
from hf_farms.blocks.partitioned import whole_shape
from hf_farms.s2ft.checks import check_module, check_unshared
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.selection import Selection

__all__ = ["channels_by_module"]


def channels_by_module(coupled: CoupledModel, selection: Selection) -> dict[nn.Module, tuple[Tensor, bool]]:
    """Return for each trained module its channels, after a permutation, and whether they are inputs.

    Args:
        coupled: of the config of the selection.
        selection: of at least one layer.

    Raises:
        ValueError: layers or channels that the model does not have.
        ModelError: layers that cannot be trained selectively.
    """
    model, layers = coupled.source.model, coupled.layers
    permuted = selection.config.layout == "permuted"
    indices: dict[nn.Module, list[Tensor]] = defaultdict(list)
    inputs: dict[nn.Module, bool] = {}
    check_unshared(model, [layers[name] for name in selection.channels if name in layers])
    for name, channels in selection.channels.items():
        layer = _checked_layer(layers, name, channels)
        module = model.get_submodule(layer.parameter.rpartition(".")[0])
        check_module(module, name)
        index = torch.arange(len(channels)) if permuted else torch.tensor(channels)
        inputs[module] = layer.role in ("o", "down")
        weight = model.get_parameter(layer.parameter)
        features = whole_shape(weight)[1 if layer.part.transposed else 0]
        indices[module].append(index if inputs[module] else module_channels(layer, features)[index])
    return {module: (torch.cat(parts).sort().values, inputs[module]) for module, parts in indices.items()}


def _checked_layer(layers: dict[str, LayerMetadata], name: str, channels: Sequence[int]) -> LayerMetadata:
    """Return the layer of this name, if it exists and has the channels."""
    layer = layers.get(name)
    if layer is None:
        raise ValueError(f"selection must name layers of this model, got {name!r}. Take one that was made for it.")
    size = layer.shape[1 if layer.role in ("o", "down") else 0]
    if not channels or list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= size:
        raise ValueError(
            f"selection must have ascending channels from 0 to {size - 1} in {name}, got {list(channels)[:3]} ... "
            f"{list(channels)[-1:]}."
        )
    return layer
