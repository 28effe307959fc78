"""Map parameters to the layers whose factors they follow: their own layer, or those around them."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_farms.blocks import BlockReader, LayerMetadata, ModelBlockSource, plain_name, unwrapped
from hf_farms.blocks.adapters import BASE
from hf_farms.config import LRUnit

__all__ = ["layers_by_parameter", "layers_by_unit"]


def layers_by_unit(source: ModelBlockSource, *, outside: bool, unit: LRUnit) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return for each parameter, frozen ones included, the layers that share its group in the optimizer.

    Args:
        source: the blocks of a model.
        outside: whether embeddings and head count as layers.
        unit: "layer", or "block" for one group for all layers of a block.
    """
    layers = layers_by_parameter(source.model, source, outside=outside, frozen=True)
    if unit == "layer":
        return layers
    whole: dict[str, tuple[str, ...]] = {}
    for index in range(len(source)):
        names = tuple(layer.name for layer in source.metadata(index).layers)
        whole |= dict.fromkeys(names, names)
    return {parameter: whole.get(names[0], names) for parameter, names in layers.items()}


def layers_by_parameter(
    model: nn.Module, source: BlockReader, *, outside: bool, frozen: bool = False
) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return for each trainable parameter the names of the layers whose factors it follows.

    A weight follows the layers in it (several if it is fused or contains experts); its bias and its adapters follow
    the same. A batch norm follows the layer before it. Every other parameter of a block, such as a layer norm, follows
    the layers of the smallest module around it that has any. Parameters outside the blocks follow none.

    Args:
        model: with the parameters.
        source: the blocks of this model.
        outside: whether embeddings and head count as layers.
        frozen: include frozen parameters, which may be trained later.
    """
    model = unwrapped(model)
    layers = [layer for index in range(len(source)) for layer in source.metadata(index).layers]
    layers += [view.metadata for view in source.outside] if outside else []
    by_parameter: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        by_parameter[layer.parameter].append(layer.name)
    around = _layers_around(layers)
    blocks = tuple(f"{source.metadata(index).name}." for index in range(len(source)))
    modules = dict(model.named_modules())
    followed: dict[nn.Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not frozen:
            continue
        home = name.rpartition(".")[0]
        if isinstance(modules.get(home), _BatchNorm):
            home = _before(modules, home, around) or home
        if name in by_parameter:
            followed[parameter] = tuple(by_parameter[name])
        elif plain_name(name).startswith(blocks) or home in around:
            followed[parameter] = _nearest(home, around, blocks)
    return {parameter: names for parameter, names in followed.items() if names}


def _layers_around(layers: list[LayerMetadata]) -> dict[str, list[str]]:
    """Return for each module the layers inside it."""
    around: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        path = layer.parameter.rpartition(".")[0]
        while path.endswith(f".{BASE}"):
            path = path.removesuffix(f".{BASE}")
        while path:
            around[path].append(layer.name)
            path = path.rpartition(".")[0]
    return dict(around)


def _nearest(home: str, around: dict[str, list[str]], blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the layers of the smallest module around `home`, up to its block."""
    while home:
        if home in around:
            return tuple(around[home])
        if f"{plain_name(home)}." in blocks:
            break
        home = home.rpartition(".")[0]
    return ()


def _before(modules: dict[str, nn.Module], home: str, around: dict[str, list[str]]) -> str | None:
    """Return the last sibling before `home` that has layers and as many channels."""
    parent, _, own = home.rpartition(".")
    norm = modules[home]
    assert isinstance(norm, _BatchNorm)
    before: str | None = None
    for name, sibling in modules[parent].named_children():
        if name == own:
            break
        path = f"{parent}.{name}" if parent else name
        weight = getattr(sibling, "weight", None)
        if path in around and isinstance(weight, torch.Tensor) and len(weight) == norm.num_features:
            before = path
    return before
