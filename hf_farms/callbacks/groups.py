"""Multiply the learning rate of single parameters by factors, without changing the optimizer's groups.

Scheduler, checkpoints and the Trainer's logs read the groups, and expect as many of them as at the start. So each step
runs on a view of the optimizer with the same state and finer groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from hf_farms.callbacks.viewed_steps import ViewedSteps
from hf_farms.config import LRQuantity

__all__ = [
    "TAG",
    "Group",
    "Key",
    "LayerwiseGroups",
    "Rates",
    "copied_rates",
    "mean_factor",
    "scaled_rates",
    "split_by_key",
]

# Entries that each finer group has of its own. It shares all others with its group, except for counters that a step
# writes (schedule-free).
RATES = ("lr", "weight_decay")
OWN = frozenset({"params", *RATES})

# Entry of a group of `layerwise_optimizer`: its key as a list of names, or None.
TAG = "hf_farms_key"

Group = dict[str, Any]
# Names of the layers whose factors a parameter follows.
Key = tuple[str, ...]


class Rates(NamedTuple):
    """Learning rate and weight decay of a parameter, factors included; tensors where the group has tensors."""

    lr: Any
    weight_decay: Any


class _Finer:
    """The finer groups of one group of the optimizer.

    Attributes:
        group: of the optimizer.
        list: its list of parameters.
        params: the parameters of the finer groups, in the order of the group.
        by_key: a finer group for every key.
        left: the entries of the group after the last step; entries that differ now were changed by other code.
        used: learning rate and weight decay of the group in the last step.
    """

    def __init__(self, group: Group) -> None:
        self.group, self.list = group, group["params"]
        self.params: tuple[torch.nn.Parameter, ...] = ()
        self.by_key: dict[Key | None, Group] = {}
        self.left: Group = {}
        self.used: Group = {}

    def belongs_to(self, group: Group) -> bool:
        """Return whether this is the group; loading a state replaces the group and keeps its list of parameters."""
        return group is self.group or group["params"] is self.list

    def is_up_to_date(self) -> bool:
        """Return whether the group still has the parameters of the finer groups."""
        return list(map(id, self.params)) == list(map(id, self.group["params"]))

    def assign(self, keys: Mapping[torch.nn.Parameter, Key]) -> None:
        """Put each parameter into the finer group of its key; counters of a finer group stay in it."""
        self.params = tuple(self.group["params"])
        groups = _params_by_key(self.params, keys)
        self.by_key = {key: {**self.by_key.get(key, {}), "params": params} for key, params in groups.items()}


class LayerwiseGroups(ViewedSteps):
    """One group for each parameter key, in a view of the optimizer that runs each step.

    The layout changes only if the groups of the optimizer do, so that every step works on the same tensors together.

    Args:
        optimizer: without wrappers.
        keys: parameters with the same key share a factor; parameters without a key have factor 1.
        quantity: the quantity that is multiplied by the factors.
        renew: returns the keys again after parameters were added to a group or removed; None: the keys stay.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        keys: Mapping[torch.nn.Parameter, Key],
        quantity: LRQuantity,
        *,
        renew: Callable[[], Mapping[torch.nn.Parameter, Key]] | None = None,
    ) -> None:
        super().__init__(optimizer)
        self._quantity, self._renew = quantity, renew or (lambda: keys)
        # Factors by the name of a layer, and by key.
        self._by_layer: Mapping[str, float] = {}
        self._factors: dict[Key, float] = {}
        self._finer: list[_Finer] = []
        self._follow(lambda: keys)

    @property
    def keys(self) -> set[Key]:
        """The keys of this optimizer's parameters."""
        return {key for finer in self._finer for key in finer.by_key if key is not None}

    def set_factors(self, factors: Mapping[str, float]) -> None:
        """Set the factors by layer, from the next step on; a parameter that follows several layers gets their mean."""
        self._by_layer = dict(factors)
        self._factors = {key: mean_factor(self._by_layer, key) for key in self.keys}

    def rates(self) -> dict[torch.nn.Parameter, Rates]:
        """Return what the last step used for each parameter; before the first, what it will use."""
        return {
            parameter: self._scaled(finer.used or finer.group, key)
            for finer in self._finer
            for key, target in finer.by_key.items()
            for parameter in target["params"]
        }

    def counted(self) -> list[list[Group]]:
        """Return the counters that steps have written and that differ within a group, for `resume`."""
        counters = []
        for fine in (finer.by_key.values() for finer in self._finer):
            names = {name for target in fine for name in target.keys() - OWN}
            names = {name for name in names if _differ([target.get(name) for target in fine])}
            counters.append([{name: target[name] for name in sorted(names)} for target in fine])
        return counters if any(numbers for fine in counters for numbers in fine) else []

    def resume(self, counted: list[list[Group]]) -> None:
        """Restore the counters that `counted` returned at the step whose state the optimizer has loaded."""
        if [len(fine) for fine in counted] != [len(finer.by_key) for finer in self._finer]:
            return
        for finer, numbers in zip(self._finer, counted, strict=True):
            for target, own in zip(finer.by_key.values(), numbers, strict=True):
                target.update(own)
                finer.left.update((name, finer.group[name]) for name in finer.group.keys() & own.keys())

    def _follow(self, find_keys: Callable[[], Mapping[torch.nn.Parameter, Key]]) -> None:
        """Adapt to changes of the optimizer's groups: added and removed parameters, and whole groups."""
        before, self._finer = self._finer, []
        for group in self.optimizer.param_groups:
            finer = next((old for old in before if old.belongs_to(group)), None) or _Finer(group)
            finer.group, finer.list = group, group["params"]
            self._finer.append(finer)
        changed = [finer for finer in self._finer if not finer.is_up_to_date()]
        if changed:
            keys = find_keys()
            for finer in changed:
                finer.assign(keys)
        if changed or len(before) != len(self._finer):
            self.set_factors(self._by_layer)

    def _attributes(self, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Return the finer groups with their factors applied."""
        self._follow(self._renew)
        for finer in self._finer:
            # A scheduler sets the next rate before it can be logged; a tensor in place.
            finer.used = copied_rates(finer.group)
        if all(factor == 1.0 for factor in self._factors.values()) and not self.counted():
            return None
        stand_in: list[Group] = []
        for finer in self._finer:
            for key, target in finer.by_key.items():
                _copy_over(finer.group, target, finer.left)
                rates = self._scaled(finer.group, key)
                target["lr"] = rates.lr
                if rates.weight_decay is not None:
                    target["weight_decay"] = rates.weight_decay
                stand_in.append(target)
        return {"param_groups": stand_in}

    def _follow_step(self, optimizer: torch.optim.Optimizer, view: dict[str, Any]) -> None:
        """Copy the changes of the step in the finer groups to the optimizer's."""
        for finer in self._finer:
            for target in finer.by_key.values():
                finer.group.update((name, target[name]) for name in target.keys() - OWN)
            finer.left = {name: finer.group[name] for name in finer.group.keys() - OWN}

    def _scaled(self, group: Group, key: Key | None) -> Rates:
        return scaled_rates(group, 1.0 if key is None else self._factors[key], self._quantity)


def scaled_rates(group: Group, factor: float, quantity: LRQuantity) -> Rates:
    """Return the rates of a group of the optimizer, with the factor applied to the quantity."""
    lr = 1.0 if quantity == "weight_decay" else factor
    decay = {"lr": 1.0, "weight_decay": factor, "both": factor}.get(quantity)
    decay = 1 / factor if decay is None else decay
    base = group.get("weight_decay")
    # A rate that is a tensor is shared with the scheduler: not changed in place.
    return Rates(group["lr"] if lr == 1.0 else group["lr"] * lr, base if base is None or decay == 1.0 else base * decay)


def mean_factor(factors: Mapping[str, float], names: Iterable[str]) -> float:
    """Return the mean factor of some layers: exactly theirs if they share it, 1 if none has one."""
    values = [factors[name] for name in names if name in factors]
    if len(set(values)) <= 1:
        return values[0] if values else 1.0
    return math.fsum(values) / len(values)


def split_by_key(
    groups: list[Group], keys: Mapping[torch.nn.Parameter, Key]
) -> tuple[list[Group], dict[torch.nn.Parameter, int]]:
    """Split groups by key and tag them; return them, and the number of each parameter's group."""
    finer: list[Group] = []
    numbers: dict[torch.nn.Parameter, int] = {}
    for group in groups:
        for key, parameters in _params_by_key(group["params"], keys).items():
            numbers |= dict.fromkeys(parameters, len(finer))
            finer.append({**group, "params": parameters, TAG: None if key is None else list(key)})
    return finer, numbers


def _params_by_key(
    params: Iterable[torch.nn.Parameter], keys: Mapping[torch.nn.Parameter, Key]
) -> dict[Key | None, list[torch.nn.Parameter]]:
    groups: dict[Key | None, list[torch.nn.Parameter]] = {}
    for parameter in params:
        groups.setdefault(keys.get(parameter), []).append(parameter)
    return groups


def _copy_over(group: Group, target: Group, left: Group) -> None:
    """Copy the entries of a group to a finer group, except for those that only steps have changed."""
    for name in target.keys() - group.keys():
        del target[name]
    for name in group.keys() - OWN:
        if name not in target or name not in left or group[name] is not left[name]:
            target[name] = group[name]


def copied_rates(group: Group) -> Group:
    """Return the rates of a group of the optimizer as they are now."""
    rates = {name: group[name] for name in RATES if name in group}
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in rates.items()}


def _differ(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values) and len(set(values)) > 1
