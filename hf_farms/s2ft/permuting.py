"""Layout "permuted": move the selected heads and channels of a model to the front."""

from __future__ import annotations

from typing import Any

from hf_farms.blocks.coupling import Structure, check_movable, permute_structure
from hf_farms.blocks.layouts import KNOWN
from hf_farms.errors import ModelError
from hf_farms.s2ft.checks import check_unshared
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.layers import ordered_class
from hf_farms.s2ft.selection import Selection

__all__ = ["move_selected_first"]


def move_selected_first(coupled: CoupledModel, selection: Selection) -> None:
    """Permute the weights in place so that the selected units come first, on both sides of every structure.

    State dicts of the changed modules keep the original order.

    Raises:
        ModelError: an architecture whose couplings are not known, or whose units cannot be moved.
        ValueError: the selection has parts of units.
    """
    model = coupled.source.model
    model_type = getattr(coupled.source.config, "model_type", type(model).__name__)
    if model_type not in KNOWN:
        raise ModelError(
            f"layout 'permuted' must know the coupled layers of a model, got {model_type}.",
            hint="Use layout='indexed'.",
        )
    structures = [structure for block in coupled.grouped for structure in block]
    selected = [(structure, units) for structure in structures if (units := _selected_units(structure, selection))]
    for structure, _ in selected:
        check_movable(model, structure)
    members = [member.layer for structure, _ in selected for member in structure.members]
    check_unshared(model, members)
    if unknown := sorted(set(selection.channels) - {layer.name for layer in members}):
        raise ValueError(
            f"selection must be of heads or channels for layout 'permuted', got {unknown[0]}. Use layout='indexed'."
        )
    for structure, units in selected:
        order = [*units, *sorted(set(range(structure.units)) - set(units))]
        for module, orders in permute_structure(model, structure, order).items():
            ordered: Any = module
            ordered.s2ft_plain_class = type(module)
            ordered.s2ft_orders = orders
            module.__class__ = ordered_class(type(module))


def _selected_units(structure: Structure, selection: Selection) -> list[int]:
    """Return the selected units of a structure, ascending.

    Raises:
        ValueError: parts of units are selected, or not the same units in each layer.
    """
    selected = {member: selection.channels.get(member.layer.name, ()) for member in structure.members}
    units = sorted({channel // member.width for member, channels in selected.items() for channel in channels})
    for member, channels in selected.items():
        if channels and tuple(member.channels(units).tolist()) != tuple(channels):
            raise ValueError(
                f"selection must have whole heads (groups of them where they share keys and values), the same in all "
                f"layers of a block, for layout 'permuted', got others in {member.layer.name}. Use layout='indexed'."
            )
    return units
