"""Find the blocks of a model, its embeddings and its head. Works on meta tensors too."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn

from hf_farms.blocks.block_layers import count_weights, find_layers, layers_by_weight
from hf_farms.blocks.layers import BlockMetadata, LayerMetadata
from hf_farms.blocks.layouts import BLOCK_PATHS, KNOWN
from hf_farms.blocks.partitioned import whole_shape
from hf_farms.blocks.wrappers import plain_name
from hf_farms.errors import HfFarmsWarning, ModelError

__all__ = ["config_above", "describe_blocks", "find_embeddings_and_head"]

# In an encoder-decoder, a second module list counts as a stack of blocks from this share of the largest one's weights.
SECOND_STACK_SHARE = 0.1

Named = tuple[str, nn.Module]


def find_blocks(model: nn.Module) -> list[Named]:
    """Find the blocks of a model with their names, in order of depth.

    Of several module lists the largest is taken; of a multimodal model that of its language model; of an
    encoder-decoder both. In a model without module lists, its direct children are the blocks.

    Raises:
        ModelError: the model has no layers.
    """
    stacks = _stacks(model)
    sizes = {name: sum(count_weights(block) for block in stack) for name, stack in stacks.items()}
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
    # A module that occurs several times in the list is one block.
    first: dict[nn.Module, str] = {}
    for name, block in blocks:
        first.setdefault(block, name)
    blocks = [(name, block) for block, name in first.items()]
    if not blocks:
        head = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        blocks = [(name, child) for name, child in model.named_children() if count_weights(child) and child is not head]
    if not blocks:
        raise ModelError(
            f"model must have blocks with linear layers, got {type(model).__name__} "
            f"({model_type or 'no config'}) without any."
        )
    if model_type not in KNOWN:
        roles = dict.fromkeys(layer.role for name, block in blocks for layer in find_layers(name, block, config))
        _warn_of_unknown_layout(f"{type(model).__name__} ({model_type or 'no config'})", len(blocks), chosen, roles)
    return blocks


def _warn_of_unknown_layout(model: str, num_blocks: int, stacks: Iterable[str], roles: Iterable[str]) -> None:
    location = ", ".join(map(repr, stacks)) or "its children"
    warnings.warn(
        f"No layout is known for {model}; using its module tree: {num_blocks} blocks at {location} with the layers "
        f"{', '.join(roles)}.",
        HfFarmsWarning,
        stacklevel=6,
    )


def _stacks(model: nn.Module, *, nested: bool = False) -> dict[str, list[nn.Module]]:
    """Return the outermost module lists with weights; only those of the language model if there is one."""
    stacks: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in stacks)
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and (nested or not inside):
            has_weights = nested or any(count_weights(child) for child in module.children())
            if isinstance(module, nn.Sequential) and not has_weights:
                continue
            stacks[name] = list(module)
    language = {name: stack for name, stack in stacks.items() if "language_model" in name.split(".")}
    return language or stacks


def config_above(model: nn.Module, name: str) -> Any:
    """Return the config of the nearest module above `name`: in a multimodal model, that of its text model."""
    parts = name.split(".") if name else []
    for depth in range(len(parts), -1, -1):
        config = getattr(model.get_submodule(".".join(parts[:depth])), "config", None)
        if getattr(config, "model_type", None):
            return config
    return None


def describe_blocks(model: nn.Module) -> tuple[list[nn.Module], list[BlockMetadata]]:
    """Find the blocks of a model and describe their layers.

    Returns:
        The block modules, and their metadata, in order of depth.

    Raises:
        ModelError: the model has no layers.
    """
    blocks = find_blocks(model)
    config = config_above(model, blocks[0][0])
    metadata = []
    homes: dict[int, str] = {}
    for index, (name, module) in enumerate(blocks):
        own, shared = [], []
        for weight, layers in layers_by_weight(name, module, config):
            if (home := homes.get(id(weight))) is None:
                own += layers
            else:
                shared += [(layer.name, home) for layer in layers]
            homes.setdefault(id(weight), layers[0].name if layers else "")
        metadata.append(BlockMetadata(index, plain_name(name), tuple(own), tuple(shared)))
    return [module for _, module in blocks], metadata


def find_embeddings_and_head(model: nn.Module) -> tuple[LayerMetadata, ...]:
    """Find the token embeddings and the output head; if they are tied, only the embeddings."""
    names = {module: name for name, module in model.named_modules()}
    roles: dict[nn.Module, str] = {}
    for role, getter in (("embedding", "get_input_embeddings"), ("head", "get_output_embeddings")):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError):  # no text, or not a transformers model
            continue
        if module in names:
            roles[module] = role
    roles |= {child: "head" for child in model.children() if isinstance(child, nn.Linear)}
    layers: dict[int, LayerMetadata] = {}
    for module, role in roles.items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and len(shape := whole_shape(weight)) == 2:
            name = names[module]
            layers.setdefault(id(weight), LayerMetadata(name, role, shape, parameter=f"{name}.weight"))
    return tuple(layers.values())
