"""Find attention and feed-forward network of a block: modules that can be run, and fitted, on their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hf_farms.blocks import Block
from hf_farms.pruning.removal_plan import prunable_layers

__all__ = ["Submodule", "find_submodules", "whole_block"]

ATTENTION = frozenset({"q", "k", "v", "o", "q_a", "q_b", "kv_a", "kv_b"})
FEED_FORWARD = frozenset({"gate", "up", "down"})
# Prefixes of roles: cross-attention is a module of its own, shared experts belong to the feed-forward network.
CROSS, SHARED = "cross_", "shared_"


@dataclass(frozen=True)
class Submodule:
    """A part of a block that is fitted on its own.

    Attributes:
        name: in the model.
        module: the part itself.
        trained: names of the pruned parameters inside of it.
    """

    name: str
    module: nn.Module
    trained: tuple[str, ...]


def find_submodules(block: Block) -> list[Submodule]:
    """Return the smallest modules of a block that hold all matrices of its attention, and of its feed-forward network.

    Other layers (linear attention, state spaces) form one part for each child of the block. The only part is the whole
    block where these modules do not lie apart: OPT has the feed-forward matrices in the block itself.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for parameter, role in _pruned(block).items():
        groups[_group(role, parameter)].append(parameter)
    paths = {_common_module(parameters) for parameters in groups.values()}
    # A layer of no known role may lie inside another part, such as the gate of a shared expert.
    outer = [path for path in paths if not any(_is_inside(path, other) for other in paths)]
    order = [name for name, _ in block.module.named_modules()]
    return [_submodule(block, path) for path in sorted(outer, key=order.index)]


def whole_block(block: Block) -> Submodule:
    """Return the block as its only part."""
    return _submodule(block, "")


def _submodule(block: Block, path: str) -> Submodule:
    inside = [name for name in _pruned(block) if not path or _is_inside(name, path)]
    trained = tuple(name.removeprefix(f"{path}.") if path else name for name in inside)
    name = f"{block.metadata.name}.{path}" if path else block.metadata.name
    return Submodule(name, block.module.get_submodule(path), trained)


def _pruned(block: Block) -> dict[str, str]:
    """Return the pruned parameters of a block by their path inside of it, each with a role that it holds."""
    prefix = f"{block.metadata.name}."
    named = {id(parameter): name for name, parameter in block.module.named_parameters(remove_duplicate=False)}
    paths = {}
    for layer in prunable_layers(block.layers):
        attribute = layer.metadata.parameter.rpartition(".")[2]
        parameter = getattr(layer.module, attribute)
        # Wrappers inside of the block insert parts into the names of its layers.
        paths[named.get(id(parameter), layer.metadata.parameter.removeprefix(prefix))] = layer.role
    return paths


def _group(role: str, parameter: str) -> str:
    plain = role.removeprefix(CROSS).removeprefix(SHARED)
    if plain in ATTENTION:
        return f"{CROSS if role.startswith(CROSS) else ''}attention"
    return "feed-forward" if plain in FEED_FORWARD else parameter.partition(".")[0]


def _common_module(parameters: Iterable[str]) -> str:
    """Return the path of the smallest module around the modules of all parameters; "" is the block itself."""
    paths = [parameter.split(".")[:-2] for parameter in parameters]
    if all(parameter.rpartition(".")[2] != "weight" for parameter in parameters):
        # Experts: the module holds the matrices themselves.
        paths = [parameter.split(".")[:-1] for parameter in parameters]
    common = paths[0]
    for path in paths[1:]:
        length = next((i for i, (a, b) in enumerate(zip(common, path, strict=False)) if a != b), None)
        common = common[: min(len(common), len(path)) if length is None else length]
    return ".".join(common)


def _is_inside(path: str, other: str) -> bool:
    """Return whether a path lies below another one."""
    return path.startswith(f"{other}.") if other else path != ""
