"""Find the layers of a block: linear layers, experts, convolutions, and the parts of fused projections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from hf_farms.blocks.adapters import active_copy, base_path, innermost_base, is_adapted
from hf_farms.blocks.layers import WHOLE, Kind, LayerMetadata, Part
from hf_farms.blocks.layouts import expert_parts, fused_parts, is_experts, role_of
from hf_farms.blocks.partitioned import whole_numel, whole_shape
from hf_farms.blocks.routers import router_paths
from hf_farms.blocks.wrappers import plain_name
from hf_farms.errors import ModelError

__all__ = ["count_weights", "find_layers", "layers_by_weight"]

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def count_weights(block: nn.Module) -> int:
    """Count the weights of the layers in a block."""
    return sum(whole_numel(weight) for _, _, _, weight in _matrix_parameters(block, ""))


def find_layers(name: str, block: nn.Module, config: Any) -> tuple[LayerMetadata, ...]:
    """Find the layers of one block: linear layers, experts, convolutions, complex weights, parts of fused weights.

    Args:
        name: name of the block in the model.
        block: the block.
        config: config of the (text) model.
    """
    return tuple(layer for _, layers in layers_by_weight(name, block, config) for layer in layers)


def layers_by_weight(name: str, block: nn.Module, config: Any) -> Iterator[tuple[Tensor, list[LayerMetadata]]]:
    """Yield each weight of a block with the layers that it holds; arguments as for `find_layers`."""
    routers = router_paths(block, config)
    for path, module, attribute, weight in _matrix_parameters(block, ""):
        layers = _layers_of_weight(name, path, module, attribute, weight, config=config)
        if path in routers:
            layers = [replace(layer, role="router") for layer in layers]
        elif len(layers) == 1 and layers[0].role == "router" and layers[0].shape[0] >= layers[0].shape[1]:
            # It has the name of a router but the size of a feed-forward layer.
            layers = [replace(layers[0], role="gate")]
        yield weight, layers


# Path inside the block, module, attribute, weight (of the base layer under adapters).
MatrixParameter = tuple[str, nn.Module, str, Tensor]


def _matrix_parameters(module: nn.Module, path: str) -> Iterator[MatrixParameter]:
    """Yield the weights that act as matrices, in the order of the module tree."""
    if is_adapted(module):
        base = innermost_base(module)
        weight = getattr(base, "weight", None)
        if not isinstance(weight, Tensor):
            raise ModelError(
                f"adapters must be on linear layers, got one on the parameters of {path}.",
                hint="Merge it first: model.merge_and_unload().",
            )
        # Adapters on norms and embeddings wrap no layer.
        if len(whole_shape(weight)) >= 2 and not isinstance(base, nn.Embedding):
            yield path, module, "weight", weight
        return
    if (trained_copy := active_copy(module)) is not None:
        yield from _matrix_parameters(trained_copy[1], f"{path}.{trained_copy[0]}" if path else trained_copy[0])
        return
    if isinstance(module, MATRICES) or _is_conv1d(module) or _is_router(module):
        yield path, module, "weight", cast(Tensor, module.weight)
    elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        yield path, module, "in_proj_weight", cast(Tensor, module.in_proj_weight)
    else:
        for attribute, parameter in module.named_parameters(recurse=False):
            ndim = len(whole_shape(parameter))
            if (is_experts(module) and ndim == 3) or (parameter.is_complex() and ndim >= 2):
                yield path, module, attribute, parameter
    for child_name, child in module.named_children():
        yield from _matrix_parameters(child, f"{path}.{child_name}" if path else child_name)


def _is_conv1d(module: nn.Module) -> bool:
    """Return whether this is the Conv1D of transformers, a linear layer with an `(in, out)` weight."""
    return hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)


def _is_router(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "Router" in type(module).__name__ and isinstance(weight, nn.Parameter) and len(whole_shape(weight)) == 2


def _layers_of_weight(
    block: str, path: str, module: nn.Module, attribute: str, weight: Tensor, config: Any
) -> list[LayerMetadata]:
    """Return the layers that one weight holds."""
    full = f"{block}.{path}" if path else block
    inner = innermost_base(module)
    parameter = f"{full}{base_path(module)}.{attribute}"
    # A trained copy (`modules_to_save`) has the role of the module that it replaces.
    name, path = plain_name(full), re.sub(r"\.(modules_to_save\.[^.]+|original_module)(?=\.|$)", "", plain_name(path))

    def layer(suffix: str, role: str, shape: tuple[int, ...], kind: Kind, part: Part) -> LayerMetadata:
        return LayerMetadata(f"{name}{suffix}", role, shape, kind, parameter, part)

    shape = whole_shape(weight)
    if weight.is_complex():
        # Fourier layers hold (in, out, *modes).
        suffix = "" if attribute == "weight" else f".{attribute}"
        return [layer(suffix, f"{path}{suffix}" if path else attribute, shape, "complex", WHOLE)]
    if is_experts(module):
        parts = expert_parts(module, path, attribute, shape)
        return [
            layer(f".{e}.{role}", role, _part_shape(shape[1:], part), "expert", replace(part, expert=e))
            for e in range(shape[0])
            for role, part in parts.items()
        ]
    if len(shape) > 2:
        return [layer("", role_of(path), shape, "conv", WHOLE)] if min(shape[:2]) > 1 else []
    if isinstance(inner, nn.Linear):
        # Quantized weights are packed, so their own shape is not (out, in).
        shape = (inner.out_features, inner.in_features)
    transposed = _is_conv1d(inner)
    rows, cols = reversed(shape) if transposed else shape
    if isinstance(module, nn.MultiheadAttention):
        parts = {r: Part(start=i * rows // 3, stop=(i + 1) * rows // 3) for i, r in enumerate("qkv")}
    else:
        parts = fused_parts(path, rows, config) or {}
    if not parts:
        whole = Part(transposed=True) if transposed else WHOLE
        return [layer("", role_of(path), (rows, cols), "linear", whole)]
    parts = {role: replace(part, transposed=transposed) for role, part in parts.items()}
    return [layer(f".{role}", role, _part_shape(shape, part), "linear", part) for role, part in parts.items()]


def _part_shape(shape: tuple[int, ...], part: Part) -> tuple[int, ...]:
    rows, cols = reversed(shape) if part.transposed else shape
    return (rows if part.stop is None else part.groups * (part.stop - part.start), cols)
