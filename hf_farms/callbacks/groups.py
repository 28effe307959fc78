"""Factors on the learning rate of single parameters, without touching the groups that everyone else sees.

An optimizer's groups belong to the scheduler, to checkpoints and to the Trainer's logs: all of them expect as many
groups as there were at the start. So a step is made by a stand-in, a view of the optimizer with the same state and
finer groups, which a step hook puts in its place. The optimizer itself never changes, also not when a step fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from hf_farms.config import LRQuantity

__all__ = ["Key", "LayerwiseGroups", "mean_factor"]

# Of a finer group alone; the rest it shares with its group, except for what a step counts (schedule-free).
OWN = frozenset({"params", "lr", "weight_decay"})

Group = dict[str, Any]
# Names of the layers that a parameter follows.
Key = tuple[str, ...]


class _Finer:
    """The finer groups of one group of the optimizer.

    Attributes:
        group: of the optimizer.
        list: its list of parameters.
        params: the parameters that the finer groups were made for, in the order of the group.
        by_key: a finer group for every key.
        left: what the group was left with after the last step: what differs from it somebody else has changed.
    """

    def __init__(self, group: Group) -> None:
        self.group, self.list = group, group["params"]
        self.params: tuple[torch.nn.Parameter, ...] = ()
        self.by_key: dict[Key | None, Group] = {}
        self.left: Group = {}

    def belongs_to(self, group: Group) -> bool:
        """Whether this is the group, also after the optimizer has loaded a state, which keeps the list."""
        return group is self.group or group["params"] is self.list

    def is_up_to_date(self) -> bool:
        """Whether the group still has the parameters that the finer ones were made for."""
        return list(map(id, self.params)) == list(map(id, self.group["params"]))

    def share_out(self, keys: Mapping[torch.nn.Parameter, Key]) -> None:
        """Give each parameter to the finer group of its key; what steps have counted in one stays in it."""
        self.params = tuple(self.group["params"])
        found = _by_key(self.params, keys)
        self.by_key = {key: {**self.by_key.get(key, {}), "params": params} for key, params in found.items()}


class LayerwiseGroups:
    """Groups by parameter key that a view of the optimizer has during each step.

    The layout changes only where the groups of the optimizer do, so that it works on the same tensors together in
    every step.

    Args:
        optimizer: the innermost one.
        keys: for each parameter what it shares a factor with; parameters without a key stay at factor 1.
        quantity: what the factors are applied to.
        renew: gives the keys again when parameters have joined or left a group; None: they stay.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        keys: Mapping[torch.nn.Parameter, Key],
        quantity: LRQuantity,
        *,
        renew: Callable[[], Mapping[torch.nn.Parameter, Key]] | None = None,
    ) -> None:
        self.optimizer, self._quantity, self._renew = optimizer, quantity, renew or (lambda: keys)
        # By the name of the layer, and of each key.
        self._by_layer: Mapping[str, float] = {}
        self._factors: dict[Key, float] = {}
        self._finer: list[_Finer] = []
        self._follow(lambda: keys)
        self._view: Any = object.__new__(type(optimizer))
        self._given: dict[str, Any] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        ]

    @property
    def keys(self) -> set[Key]:
        """The keys that parameters of this optimizer have."""
        return {key for finer in self._finer for key in finer.by_key if key is not None}

    def set_factors(self, factors: Mapping[str, float]) -> None:
        """Factors by layer, from the next step on; a parameter that follows several layers takes their mean."""
        self._by_layer = dict(factors)
        self._factors = {key: mean_factor(self._by_layer, key) for key in self.keys}

    def counted(self) -> list[list[Group]]:
        """Numbers that steps wrote into the finer groups and that differ between those of one group; for `resume`."""
        found = []
        for fine in (finer.by_key.values() for finer in self._finer):
            names = {name for target in fine for name in target.keys() - OWN}
            names = {name for name in names if _differ([target.get(name) for target in fine])}
            found.append([{name: target[name] for name in sorted(names)} for target in fine])
        return found if any(numbers for fine in found for numbers in fine) else []

    def resume(self, counted: list[list[Group]]) -> None:
        """Go on with what `counted` gave; the groups of the optimizer are those of the same step."""
        if [len(fine) for fine in counted] != [len(finer.by_key) for finer in self._finer]:
            return
        for finer, numbers in zip(self._finer, counted, strict=True):
            for target, own in zip(finer.by_key.values(), numbers, strict=True):
                target.update(own)
                finer.left.update((name, finer.group[name]) for name in finer.group.keys() & own.keys())

    def remove(self) -> None:
        """Let the optimizer step by itself again."""
        for hook in self._hooks:
            hook.remove()

    def _follow(self, find_keys: Callable[[], Mapping[torch.nn.Parameter, Key]]) -> None:
        """Follow what has changed in the groups: parameters that joined or left one, and whole groups."""
        before, self._finer = self._finer, []
        for group in self.optimizer.param_groups:
            finer = next((old for old in before if old.belongs_to(group)), None) or _Finer(group)
            finer.group, finer.list = group, group["params"]
            self._finer.append(finer)
        changed = [finer for finer in self._finer if not finer.is_up_to_date()]
        if changed:
            keys = find_keys()
            for finer in changed:
                finer.share_out(keys)
        if changed or len(before) != len(self._finer):
            self.set_factors(self._by_layer)

    def _enter(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Hand the step to the view, with factors on its groups."""
        if optimizer is self._view:
            # The step of a class that calls that of its parent.
            return None
        self._given = None
        self._follow(self._renew)
        if all(factor == 1.0 for factor in self._factors.values()) and not self.counted():
            return None
        stand_in: list[Group] = []
        for finer in self._finer:
            for key, target in finer.by_key.items():
                _copy_over(finer.group, target, finer.left)
                self._scale(finer.group, target, 1.0 if key is None else self._factors[key])
                stand_in.append(target)
        self._given = dict(vars(optimizer))
        vars(self._view).clear()
        vars(self._view).update({**self._given, "param_groups": stand_in})
        assert self._view.param_groups is stand_in, "the optimizer must hold its param_groups as an attribute"
        return (self._view, *args[1:]), kwargs

    def _leave(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Take over what the step wrote into its object and its groups, such as counters and estimates."""
        if self._given is None or optimizer is self._view:
            return
        for name, value in vars(self._view).items():
            if name != "param_groups" and value is not self._given.get(name, self):
                setattr(optimizer, name, value)
        for finer in self._finer:
            for target in finer.by_key.values():
                finer.group.update((name, target[name]) for name in target.keys() - OWN)
            finer.left = {name: finer.group[name] for name in finer.group.keys() - OWN}
        self._given = None

    def _scale(self, group: Group, target: Group, factor: float) -> None:
        lr = 1.0 if self._quantity == "weight_decay" else factor
        decay = {"weight_decay": factor, "both": factor, "constant_decay": 1 / factor}.get(self._quantity, 1.0)
        # A new tensor where the rate is one: the group's own is shared with the scheduler.
        target["lr"] = group["lr"] if lr == 1.0 else group["lr"] * lr
        if group.get("weight_decay") is not None:
            target["weight_decay"] = group["weight_decay"] if decay == 1.0 else group["weight_decay"] * decay


def mean_factor(factors: Mapping[str, float], names: Iterable[str]) -> float:
    """Mean factor of some layers: exactly theirs where they share it, 1 where none has one."""
    values = [factors[name] for name in names if name in factors]
    if len(set(values)) <= 1:
        return values[0] if values else 1.0
    return math.fsum(values) / len(values)


def _by_key(
    params: Iterable[torch.nn.Parameter], keys: Mapping[torch.nn.Parameter, Key]
) -> dict[Key | None, list[torch.nn.Parameter]]:
    found: dict[Key | None, list[torch.nn.Parameter]] = {}
    for parameter in params:
        found.setdefault(keys.get(parameter), []).append(parameter)
    return found


def _copy_over(group: Group, target: Group, left: Group) -> None:
    """Bring a finer group up to date with its group, except for what only steps have changed."""
    for name in target.keys() - group.keys():
        del target[name]
    for name in group.keys() - OWN:
        if name not in target or name not in left or group[name] is not left[name]:
            target[name] = group[name]


def _differ(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values) and len(set(values)) > 1
