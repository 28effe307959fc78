"""Layer-wise rates under ZeRO of DeepSpeed, whose optimizers step on flat tensors instead of parameters.

Either `layerwise_optimizer` made the optimizer: then all of a flat tensor has one key. Or the parts of the flat tensors
with one key become a finer group: views of the tensor, of its gradient and of its state. An optimizer that computes
element by element gives the same bits both ways.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hf_farms.callbacks.groups import TAG, Group, Key, Rates, copied_rates, mean_factor, scaled_rates
from hf_farms.callbacks.viewed_steps import ViewedSteps
from hf_farms.callbacks.zero_fragments import FlatTensors
from hf_farms.config import LRQuantity

__all__ = ["FragmentLayout", "Part", "TaggedLayout", "ZeroGroups"]


class Part(NamedTuple):
    """Elements of a flat tensor with one key."""

    start: int
    stop: int
    key: Key | None


class Layout(Protocol):
    """The parts of the flat tensors.

    Attributes:
        parameter_groups: number of the optimizer's group of each trained parameter.
    """

    parameter_groups: Mapping[nn.Parameter, int]

    def parts(self, group: Group, flat: Tensor) -> list[Part]:
        """Return the parts of a flat tensor in a group, in order; they cover it."""

    def number(self, group: Group) -> int | None:
        """Return the number of a group among all groups of the optimizer, if it has a flat tensor."""


class TaggedLayout:
    """The groups of `layerwise_optimizer`, one for each key.

    Args:
        groups: of the optimizer.
        parameter_groups: as in `Layout`.
    """

    def __init__(self, groups: list[Group], parameter_groups: Mapping[nn.Parameter, int]) -> None:
        self.parameter_groups = parameter_groups
        self._groups = groups

    def parts(self, group: Group, flat: Tensor) -> list[Part]:
        """Return the whole tensor."""
        return [Part(0, flat.numel(), None if group[TAG] is None else tuple(group[TAG]))]

    def number(self, group: Group) -> int | None:
        """Return the position in the list of groups."""
        return next((number for number, own in enumerate(self._groups) if own is group), None)


class FragmentLayout:
    """The parts with one key in the flat tensors of other groups.

    Args:
        flats: the flat tensors with the fragments of the parameters.
        keys: of the parameters.
    """

    def __init__(self, flats: FlatTensors, keys: Mapping[nn.Parameter, Key]) -> None:
        self.parameter_groups: Mapping[nn.Parameter, int] = flats.parameter_groups
        self._groups = flats.groups
        self._parts: dict[Tensor, list[Part]] = {}
        for flat in flats.groups:
            parts: list[Part] = []
            for start, stop, parameter in flats.fragments.get(flat, []):
                _append(parts, start, None)
                _append(parts, stop, keys.get(parameter))
            # The end is padded.
            _append(parts, flat.numel(), None)
            self._parts[flat] = parts

    def parts(self, group: Group, flat: Tensor) -> list[Part]:
        """Return runs of fragments with one key; padding has none."""
        return self._parts[flat]

    def number(self, group: Group) -> int | None:
        """Return the number of the group of the flat tensor in it."""
        return next((self._groups[flat] for flat in group["params"]), None)


def _append(parts: list[Part], stop: int, key: Key | None) -> None:
    """Add the elements from the last part to `stop`, to the last part if that has the same key."""
    start = parts[-1].stop if parts else 0
    if stop == start:
        return
    if parts and parts[-1].key == key:
        start = parts.pop().start
    parts.append(Part(start, stop, key))


class ZeroGroups(ViewedSteps):
    """One group for each key, in a view of the optimizer that runs each step, as `LayerwiseGroups` for parameters.

    Args:
        optimizer: the torch optimizer inside that of DeepSpeed.
        keys: of the trained parameters; those without a key have factor 1.
        quantity: the quantity that is multiplied by the factors.
        layout: of the flat tensors.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        keys: Mapping[nn.Parameter, Key],
        quantity: LRQuantity,
        layout: Layout,
    ) -> None:
        super().__init__(optimizer)
        self._quantity, self._layout = quantity, layout
        self._keys = {parameter: keys.get(parameter) for parameter in layout.parameter_groups}
        self._factors: dict[Key, float] = {}
        # Rates in the last step, by number of the group.
        self._used: dict[int, Group] = {}
        self._pieces: dict[Tensor, list[Tensor]] = {}

    @property
    def keys(self) -> set[Key]:
        """The keys of this optimizer's parameters."""
        return {key for key in self._keys.values() if key is not None}

    def set_factors(self, factors: Mapping[str, float]) -> None:
        """Set the factors by layer, from the next step on; a parameter that follows several layers gets their mean."""
        self._factors = {key: mean_factor(factors, key) for key in self.keys}

    def rates(self) -> dict[nn.Parameter, Rates]:
        """Return what the last step used for each parameter; before the first, what it will use."""
        groups: Any = self.optimizer.param_groups
        return {
            parameter: self._scaled(self._used.get(number) or groups[number], self._keys[parameter])
            for parameter, number in self._layout.parameter_groups.items()
        }

    def counted(self) -> list[list[Group]]:
        """Return nothing: finer groups have no counters of their own."""
        return []

    def resume(self, counted: list[list[Group]]) -> None:
        """Do nothing, as there are no counters."""

    def _attributes(self, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Return groups of the pieces with their factors applied, and the states of the pieces."""
        # ZeRO gives the optimizer one group at a time, or its other groups are empty.
        for group in optimizer.param_groups:
            if group["params"] and (number := self._layout.number(group)) is not None:
                self._used[number] = copied_rates(group)
        if all(factor == 1.0 for factor in self._factors.values()):
            return None
        self._pieces, state = {}, defaultdict[Tensor, Group](dict)
        stand_in: list[Group] = []
        for group in optimizer.param_groups:
            by_key: dict[Key | None, list[Tensor]] = {}
            for flat in group["params"]:
                for part in self._layout.parts(group, flat):
                    by_key.setdefault(part.key, []).append(self._piece(flat, part, state))
            for key, pieces in by_key.items():
                rates = self._scaled(group, key)
                decay = {} if rates.weight_decay is None else {"weight_decay": rates.weight_decay}
                stand_in.append({**group, "params": pieces, "lr": rates.lr, **decay})
        return {"param_groups": stand_in, "state": state}

    def _piece(self, flat: Tensor, part: Part, state: dict[Tensor, Group]) -> Tensor:
        """Return a part as a tensor with its gradient, and add its state to `state`."""
        piece, own = flat, self.optimizer.state.get(flat)
        if part.stop - part.start < flat.numel():
            piece = flat.detach()[part.start : part.stop]
            piece.grad = None if flat.grad is None else flat.grad[part.start : part.stop]
            own = own and {name: _cut(value, flat, part) for name, value in own.items()}
        if own:
            state[piece] = own
        self._pieces.setdefault(flat, []).append(piece)
        return piece

    def _follow_step(self, optimizer: torch.optim.Optimizer, view: dict[str, Any]) -> None:
        """Copy the states of the pieces to those of their flat tensors."""
        for flat, pieces in self._pieces.items():
            states = [view["state"][piece] for piece in pieces if piece in view["state"]]
            if states and pieces[0] is flat:
                optimizer.state[flat] = states[0]
            elif states:
                _join(optimizer.state[flat], flat, states)
        # The pieces would keep the flat tensors in memory.
        self._pieces = {}

    def _scaled(self, group: Group, key: Key | None) -> Rates:
        return scaled_rates(group, 1.0 if key is None else self._factors.get(key, 1.0), self._quantity)


def _cut(value: Any, flat: Tensor, part: Part) -> Any:
    """Return the state of a part: a view of what has an entry for each element, a copy of a counter."""
    if not isinstance(value, Tensor):
        return value
    return value[part.start : part.stop] if value.shape == flat.shape else value.clone()


def _join(own: Group, flat: Tensor, states: list[Group]) -> None:
    """Copy the states of all parts into that of their flat tensor; most of them are views of it already."""
    for name, first in states[0].items():
        if not isinstance(first, Tensor) or first.ndim != 1:
            own[name] = first
            continue
        values = [state[name] for state in states]
        if not isinstance(own.get(name), Tensor):
            own[name] = torch.cat(values)
        for value, target in zip(values, own[name].split([len(value) for value in values]), strict=True):
            if value.data_ptr() != target.data_ptr():
                target.copy_(value)
