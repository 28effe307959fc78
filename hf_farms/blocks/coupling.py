"""Find the rows and columns of a block's layers that belong to one attention head or one feed-forward channel.

A unit of the attention is a head, or under grouped-query attention a group of query heads with their key/value head. A
unit of the feed-forward network is one of its channels. Layers that share units are a coupled structure. In each of
them, unit u has the channels u w ... (u + 1) w - 1, with a width w of that layer. Channels are rows (outputs) of q, k,
v, up and gate, and columns (inputs) of o and down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_farms.blocks import BlockMetadata, LayerMetadata
from hf_farms.errors import ModelError

__all__ = [
    "Member",
    "Orders",
    "Structure",
    "check_movable",
    "coupled_structures",
    "module_channels",
    "permute_structure",
    "undo_orders",
]

Side = Literal["rows", "columns"]
ATTENTION: dict[str, Side] = {"q": "rows", "k": "rows", "v": "rows", "o": "columns"}
FEED_FORWARD: dict[str, Side] = {"gate": "rows", "up": "rows", "down": "columns"}
# Other parameters of the attention, with an entry for every channel of a role, or for every head (None).
OTHER_PARAMETERS: dict[str, str | None] = {"q_norm.weight": "q", "k_norm.weight": "k", "sinks": None}

# Parameter name -> for each permuted dimension the old position of every new one.
Orders = dict[str, dict[int, Tensor]]


@dataclass(frozen=True)
class Member:
    """A layer of a structure.

    Attributes:
        layer: the layer.
        side: the coupled side of its matrix.
        width: number of channels of one unit.
    """

    layer: LayerMetadata
    side: Side
    width: int

    @property
    def weights_per_unit(self) -> int:
        """Number of weights of one unit in this layer."""
        return self.width * self.layer.shape[1 if self.side == "rows" else 0]

    def channels(self, units: Sequence[int]) -> Tensor:
        """Return the channels of these units in the given order, `(units * width,)` int64."""
        start = torch.tensor(list(units), dtype=torch.int64) * self.width
        return (start[:, None] + torch.arange(self.width)).flatten()


@dataclass(frozen=True)
class Structure:
    """Layers of a block that share heads or channels."""

    kind: Literal["attention", "feed_forward"]
    units: int
    members: tuple[Member, ...]

    def trained(self, roles: Sequence[str]) -> tuple[Member, ...]:
        """Return the members with one of these roles."""
        return tuple(member for member in self.members if member.layer.role in roles)


def coupled_structures(block: BlockMetadata, config: Any, *, whole_groups: bool) -> tuple[Structure, ...]:
    """Find the coupled structures of a block: the attention and the feed-forward network, if it has them.

    Experts are not included: their weights are slices of one parameter.

    Args:
        block: with the layers.
        config: of the (text) model, for the numbers of heads and key/value heads.
        whole_groups: whether the units of grouped-query attention are groups. Else they are query heads, and the shared
            k and v belong to no unit.

    Returns:
        The attention before the feed-forward network.
    """
    layers = {layer.role: layer for layer in block.layers if layer.kind == "linear"}
    structures = []
    heads = getattr(config, "num_attention_heads", None)
    if "o" in layers and heads and layers["o"].shape[1] % heads == 0:
        units = _key_value_heads(layers, config, heads) if whole_groups else heads
        size = layers["o"].shape[1] // heads
        rows = {"q": heads * size, "k": units * size, "v": units * size, "o": heads * size}
        members = _members(layers, ATTENTION, units)
        members = tuple(m for m in members if m.layer.shape[m.side == "columns"] == rows[m.layer.role])
        structures.append(Structure("attention", units, members))
    if "down" in layers:
        channels = layers["down"].shape[1]
        members = _members(layers, FEED_FORWARD, channels)
        structures.append(Structure("feed_forward", channels, members))
    return tuple(structures)


def _key_value_heads(layers: dict[str, LayerMetadata], config: Any, heads: int) -> int:
    """Return the number of key/value heads, from the shapes if possible: configs use several names for it."""
    size = layers["o"].shape[1] // heads
    if "v" in layers and layers["v"].shape[0] % size == 0 and heads % (layers["v"].shape[0] // size) == 0:
        return layers["v"].shape[0] // size
    return int(getattr(config, "num_key_value_heads", None) or heads)


def _members(layers: dict[str, LayerMetadata], sides: dict[str, Side], units: int) -> tuple[Member, ...]:
    members = []
    for role, side in sides.items():
        if role in layers:
            size = layers[role].shape[0 if side == "rows" else 1]
            if size % units == 0:
                members.append(Member(layers[role], side, size // units))
    return tuple(members)


def module_channels(layer: LayerMetadata, features: int) -> Tensor:
    """Return the output feature of the module for each row of a layer; they differ in fused projections.

    Args:
        layer: a part of the module's weight.
        features: number of output features of the module.
    """
    positions = torch.arange(features)[:, None]
    return layer.part.rows_of(positions.mT if layer.part.transposed else positions)[:, 0]


def permute_structure(model: nn.Module, structure: Structure, order: Sequence[int]) -> dict[nn.Module, Orders]:
    """Permute the units of a structure in place, in all its layers; the model computes the same function.

    Args:
        model: with the layers.
        structure: with whole groups as units.
        order: old unit for every new one.

    Returns:
        For each changed module and parameter the order of each changed dimension, for `undo_orders`.
    """
    orders: dict[nn.Module, Orders] = {}

    def add(module: nn.Module, parameter: str, dim: int, channels: Tensor) -> None:
        known = orders.setdefault(module, {}).setdefault(parameter, {})
        known.setdefault(dim, torch.arange(getattr(module, parameter).shape[dim]))
        known[dim] = torch.where(channels >= 0, channels, known[dim])

    for member in structure.members:
        path, _, attribute = member.layer.parameter.rpartition(".")
        module, channels = model.get_submodule(path), member.channels(order)
        flipped = member.layer.part.transposed
        if member.side == "columns":
            add(module, attribute, 0 if flipped else 1, channels)
            continue
        features = getattr(module, attribute).shape[1 if flipped else 0]
        rows = module_channels(member.layer, features)
        moved = torch.full((features,), -1)
        moved[rows] = rows[channels]
        add(module, attribute, 1 if flipped else 0, moved)
        if isinstance(getattr(module, "bias", None), Tensor):
            add(module, "bias", 0, moved)
    for module, parameter, channels in _other_parameters(model, structure, order):
        add(module, parameter, 0, channels)
    for module, by_parameter in orders.items():
        for parameter, by_dim in by_parameter.items():
            for dim, channels in by_dim.items():
                _reorder(getattr(module, parameter), dim, channels)
    return orders


def undo_orders(tensor: Tensor, by_dim: dict[int, Tensor]) -> Tensor:
    """Return a copy of a permuted parameter in its original order."""
    for dim, channels in by_dim.items():
        tensor = tensor.index_select(dim, channels.argsort().to(tensor.device))
    return tensor


@torch.no_grad()
def _reorder(tensor: Tensor, dim: int, channels: Tensor) -> None:
    tensor.copy_(tensor.index_select(dim, channels.to(tensor.device)))


def _other_parameters(
    model: nn.Module, structure: Structure, order: Sequence[int]
) -> list[tuple[nn.Module, str, Tensor]]:
    """Find norms over all heads and attention sinks, with the order of their entries."""
    if structure.kind != "attention":
        return []
    by_role = {member.layer.role: member for member in structure.members}
    module = _attention(model, by_role["o"].layer)
    parameters = []
    for end, role in OTHER_PARAMETERS.items():
        path, _, name = end.rpartition(".")
        owner: Any = getattr(module, path, None) if path else module
        parameter = getattr(owner, name, None)
        if not isinstance(parameter, nn.Parameter) or (role is not None and role not in by_role):
            continue
        size = structure.units * by_role[role].width if role else parameter.numel()
        # A norm with the size of one head is the same for all heads: it does not change.
        if parameter.numel() == size and size % structure.units == 0:
            width = size // structure.units
            parameters.append((owner, name, Member(by_role["o"].layer, "columns", width).channels(order)))
    return parameters


def _attention(model: nn.Module, o: LayerMetadata) -> nn.Module:
    """Return the module around the output projection."""
    return model.get_submodule(o.parameter.rpartition(".")[0].rpartition(".")[0])


def check_movable(model: nn.Module, structure: Structure) -> None:
    """Reject structures whose units cannot be permuted.

    Raises:
        ModelError: ALiBi, position biases for every head (T5), or an unknown coupled layer.
    """
    attention = structure.kind == "attention"
    needed = {"q", "k", "v", "o"} if attention else {"up", "down"}
    o = structure.members[-1].layer
    missing = sorted(needed - {member.layer.role for member in structure.members})
    if missing:
        raise ModelError(
            f"layout 'permuted' must know every layer coupled to {o.name}, got none for {', '.join(missing)}.",
            hint="Use layout='indexed'.",
        )
    if attention:
        config = getattr(model, "config", None)
        alibi = getattr(config, "alibi", False) or getattr(config, "model_type", "") in ("bloom", "mpt")
        biased = any(hasattr(module, "relative_attention_bias") for module in model.modules())
        if alibi or biased:
            kind = "ALiBi" if alibi else "position biases for every head"
            raise ModelError(
                f"layout 'permuted' must be able to move heads, got {kind} in {type(model).__name__}.",
                hint="Use layout='indexed'.",
            )
