"""Where the blocks of a model are, and which layers each of them holds. Works on meta tensors too."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn

from hf_farms.blocks.adapters import active_copy, base_path, innermost_base, is_adapted
from hf_farms.blocks.layers import WHOLE, BlockMetadata, Kind, LayerMetadata, Part
from hf_farms.blocks.layouts import BLOCK_PATHS, KNOWN, expert_parts, fused_parts, is_experts, role_of
from hf_farms.blocks.routers import router_paths
from hf_farms.blocks.wrappers import plain_name
from hf_farms.errors import HfFarmsWarning, ModelError

__all__ = ["config_above", "describe_blocks", "find_outside"]

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# A module list with less than this share of the weights of the largest one is no list of blocks of its own.
SECOND_STACK_SHARE = 0.1

Named = tuple[str, nn.Module]


def find_blocks(model: nn.Module) -> list[Named]:
    """Blocks with their names, in order of depth.

    Of several stacks the largest counts; of a model with a language model inside, those of the language model; of an
    encoder-decoder, both. A model without stacks falls into its direct children.

    Raises:
        ModelError: no layers at all.
    """
    stacks = _stacks(model)
    sizes = {name: sum(_weights(block) for block in stack) for name, stack in stacks.items()}
    config = config_above(model, max(sizes, key=lambda name: sizes[name], default=""))
    model_type = str(getattr(config, "model_type", ""))
    if patterns := BLOCK_PATHS.get(model_type):
        everything = _stacks(model, nested=True)
        chosen = {name: s for name, s in everything.items() if any(fnmatchcase(name, p) for p in patterns)}
    else:
        both = bool(getattr(config, "is_encoder_decoder", False))
        largest = max(sizes.values(), default=0)
        chosen = {
            name: stack
            for name, stack in stacks.items()
            if sizes[name] > 0 and sizes[name] >= (SECOND_STACK_SHARE * largest if both else largest)
        }
        chosen = chosen if both else dict(list(chosen.items())[:1])
    blocks = [
        (f"{name}.{i}" if name else str(i), block) for name, stack in chosen.items() for i, block in enumerate(stack)
    ]
    # A module that is in the list again is the same block.
    first: dict[nn.Module, str] = {}
    for name, block in blocks:
        first.setdefault(block, name)
    blocks = [(name, block) for block, name in first.items()]
    if not blocks:
        head = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        blocks = [(name, child) for name, child in model.named_children() if _weights(child) and child is not head]
    if not blocks:
        raise ModelError(
            f"model must have blocks with linear layers, got {type(model).__name__} "
            f"({model_type or 'no config'}) without."
        )
    if model_type not in KNOWN:
        layers = dict.fromkeys(layer.role for name, block in blocks for layer in find_layers(name, block, config))
        where = ", ".join(repr(name) for name in chosen) or "its children"
        warnings.warn(
            f"No layout is known for {type(model).__name__} ({model_type or 'no config'}); using its module tree: "
            f"{len(blocks)} blocks at {where} with the layers {', '.join(layers)}.",
            HfFarmsWarning,
            stacklevel=5,
        )
    return blocks


def _stacks(model: nn.Module, *, nested: bool = False) -> dict[str, list[nn.Module]]:
    """Module lists with weights, the outermost ones only; those of the language model where there is one."""
    found: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and (nested or not inside):
            if isinstance(module, nn.Sequential) and not nested and not any(_weights(m) for m in module.children()):
                continue
            found[name] = list(module)
    language = {name: stack for name, stack in found.items() if "language_model" in name.split(".")}
    return language or found


def _weights(block: nn.Module) -> int:
    """Weights of the layers in a block."""
    return sum(weight.numel() for _, _, _, weight in _walk(block, ""))


def config_above(model: nn.Module, name: str) -> Any:
    """The config of the nearest module above `name` that has one: inside a multimodal model that of its text model."""
    parts = name.split(".") if name else []
    for depth in range(len(parts), -1, -1):
        config = getattr(model.get_submodule(".".join(parts[:depth])), "config", None)
        if getattr(config, "model_type", None):
            return config
    return None


def describe_blocks(model: nn.Module) -> tuple[list[nn.Module], list[BlockMetadata]]:
    """The blocks of a model, and what each of them holds.

    Raises:
        ModelError: no layers at all.
    """
    blocks = find_blocks(model)
    config = config_above(model, blocks[0][0])
    metadata = []
    homes: dict[int, str] = {}
    for index, (name, module) in enumerate(blocks):
        own, shared = [], []
        for item, layers in _layers_by_weight(name, module, config):
            if (home := homes.get(id(item))) is None:
                own += layers
            else:
                shared += [(layer.name, home) for layer in layers]
            homes.setdefault(id(item), layers[0].name if layers else "")
        metadata.append(BlockMetadata(index, plain_name(name), tuple(own), tuple(shared)))
    return [module for _, module in blocks], metadata


def find_layers(name: str, block: nn.Module, config: Any) -> tuple[LayerMetadata, ...]:
    """The layers of one block: linear layers, experts, convolutions and complex weights; fused ones in parts."""
    return tuple(layer for _, layers in _layers_by_weight(name, block, config) for layer in layers)


def _layers_by_weight(name: str, block: nn.Module, config: Any) -> Iterator[tuple[Tensor, list[LayerMetadata]]]:
    """Each weight of a block with the layers in it."""
    routers = router_paths(block, config)
    for path, module, attribute, weight in _walk(block, ""):
        layers = _split(name, path, module, attribute, weight, config=config)
        if path in routers:
            layers = [replace(layer, role="router") for layer in layers]
        elif len(layers) == 1 and layers[0].role == "router" and layers[0].shape[0] >= layers[0].shape[1]:
            # Named like a router, and as large as half of a feed-forward network.
            layers = [replace(layers[0], role="gate")]
        yield weight, layers


def find_outside(model: nn.Module) -> tuple[LayerMetadata, ...]:
    """Token embeddings and the head on the hidden states; where they are tied, the embeddings."""
    names = {module: name for name, module in model.named_modules()}
    outside: dict[nn.Module, str] = {}
    for role, getter in (("embedding", "get_input_embeddings"), ("head", "get_output_embeddings")):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError):  # a model without text, or not of transformers
            continue
        if module in names:
            outside[module] = role
    outside |= {child: "head" for child in model.children() if isinstance(child, nn.Linear)}
    layers: dict[int, LayerMetadata] = {}
    for module, role in outside.items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            name = names[module]
            layers.setdefault(id(weight), LayerMetadata(name, role, tuple(weight.shape), parameter=f"{name}.weight"))
    return tuple(layers.values())


# Path inside the block, module, attribute, weight (of an adapter's base layer).
Item = tuple[str, nn.Module, str, Tensor]


def _walk(module: nn.Module, path: str) -> Iterator[Item]:
    """Weights that act as matrices, in the order of the module tree."""
    if is_adapted(module):
        base = innermost_base(module)
        weight = getattr(base, "weight", None)
        if not isinstance(weight, Tensor):
            raise ModelError(
                f"adapters must be on linear layers, got one on the parameters of {path}.",
                hint="Merge it first: model.merge_and_unload().",
            )
        # Adapters on norms and embeddings have no layer under them.
        if weight.ndim >= 2 and not isinstance(base, nn.Embedding):
            yield path, module, "weight", weight
        return
    if (copied := active_copy(module)) is not None:
        yield from _walk(copied[1], f"{path}.{copied[0]}" if path else copied[0])
        return
    if isinstance(module, MATRICES) or _is_conv1d(module) or _is_router(module):
        yield path, module, "weight", cast(Tensor, module.weight)
    elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        yield path, module, "in_proj_weight", cast(Tensor, module.in_proj_weight)
    else:
        for attribute, parameter in module.named_parameters(recurse=False):
            if (is_experts(module) and parameter.ndim == 3) or (parameter.is_complex() and parameter.ndim >= 2):
                yield path, module, attribute, parameter
    for child_name, child in module.named_children():
        yield from _walk(child, f"{path}.{child_name}" if path else child_name)


def _is_conv1d(module: nn.Module) -> bool:
    """The Conv1D of transformers, a linear layer whose weight is `(in, out)`."""
    return hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)


def _is_router(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "Router" in type(module).__name__ and isinstance(weight, nn.Parameter) and weight.ndim == 2


def _split(
    block: str, path: str, module: nn.Module, attribute: str, weight: Tensor, config: Any
) -> list[LayerMetadata]:
    """The layers of one weight."""
    full = f"{block}.{path}" if path else block
    inner = innermost_base(module)
    parameter = f"{full}{base_path(module)}.{attribute}"
    # A module that is saved whole beside adapters has the role of the one that it stands for.
    name, path = plain_name(full), re.sub(r"\.(modules_to_save\.[^.]+|original_module)(?=\.|$)", "", plain_name(path))

    def layer(suffix: str, role: str, shape: tuple[int, ...], kind: Kind, part: Part) -> LayerMetadata:
        return LayerMetadata(f"{name}{suffix}", role, shape, kind, parameter, part)

    shape = tuple(weight.shape)
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
        # Quantised weights are packed; the features are what they were.
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
