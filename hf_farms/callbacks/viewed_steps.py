"""Steps on a view of an optimizer: an object of its class with other groups, which a step hook passes instead of it.

The optimizer itself never changes, even if a step fails.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

__all__ = ["ViewedSteps"]


class ViewedSteps(ABC):
    """Run each step of an optimizer on a view of it.

    Args:
        optimizer: without wrappers.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._view: Any = object.__new__(type(optimizer))
        # Attributes of the optimizer before a step on the view, and those that the view has of its own.
        self._given: dict[str, Any] | None = None
        self._own: dict[str, Any] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        ]

    @abstractmethod
    def _attributes(self, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Return the attributes of the view for a step, among them `param_groups`; None: the optimizer steps itself."""

    @abstractmethod
    def _follow_step(self, optimizer: torch.optim.Optimizer, view: dict[str, Any]) -> None:
        """Copy the changes of a step in the view's own attributes to the optimizer."""

    def remove(self) -> None:
        """Detach from the optimizer."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Run the step on the view."""
        if optimizer is self._view:
            # The step of a class calls that of its parent.
            return None
        self._given = None
        own = self._attributes(optimizer)
        if own is None:
            return None
        self._given, self._own = dict(vars(optimizer)), own
        vars(self._view).clear()
        vars(self._view).update({**self._given, **own})
        groups = self._view.param_groups
        assert groups is own["param_groups"], "the optimizer must hold its param_groups as an attribute"
        return (self._view, *args[1:]), kwargs

    def _leave(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Copy the changes of the step, such as counters and estimates, to the optimizer."""
        if self._given is None or optimizer is self._view:
            return
        view = dict(vars(self._view))
        for name in view.keys() - self._own.keys():
            if view[name] is not self._given.get(name, self):
                setattr(optimizer, name, view[name])
        self._follow_step(optimizer, view)
        # The view would keep the tensors of the step in memory.
        self._given, self._own = None, {}
        vars(self._view).clear()
