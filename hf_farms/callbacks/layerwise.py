"""LayerwiseCallback: what all callbacks with layer-wise factors share, wherever the factors come from."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_farms.callbacks.compatibility import check_supported
from hf_farms.callbacks.deepspeed import deepspeed_groups, engine_name
from hf_farms.callbacks.groups import TAG, Group, Key, LayerwiseGroups, split_by_key
from hf_farms.callbacks.history import error_text
from hf_farms.callbacks.rates import Rows, effective_rates
from hf_farms.callbacks.resuming import check_made_groups, check_resumed_checkpoint, check_unmade_groups, resumed_memory
from hf_farms.callbacks.trainer import (
    FARMS_LR_MARK,
    ExportableState,
    clear_mark,
    get_mark,
    log_to_trackers,
    register_callback_state,
    saved_callback_state,
    set_mark,
    unwrap_optimizer,
    uses_deepspeed,
)
from hf_farms.callbacks.zero_groups import ZeroGroups
from hf_farms.config import FarmsLRConfig, LayerwiseLRConfig
from hf_farms.errors import HfFarmsWarning, NoEffectWarning

__all__ = ["LayerwiseCallback"]


class LayerwiseCallback(TrainerCallback, ExportableState):
    """Multiply learning rates or weight decays by factors that a subclass finds.

    It attaches to the optimizer, resumes, applies factors, and sends effective rates to the trackers with every log of
    the Trainer's learning rate. A subclass finds keys (the names whose factors a parameter follows) and factors.

    Attributes:
        prefix: of the names in the log.
        memory: state for a resumed run: step and epoch of the last factors, the factors by name, and the counters that
            the optimizer keeps for each finer group; the engine; the keys of the groups of layerwise_optimizer.
    """

    prefix: ClassVar[str]
    config: FarmsLRConfig | LayerwiseLRConfig
    # Whether steps stay as they are.
    monitors = False
    # Why all factors may have been 1.
    unmoved: ClassVar[str] = ""

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._groups: LayerwiseGroups | ZeroGroups | None = None
        self._rows: Rows = {}
        # Of the optimizer that layerwise_optimizer made: the number of each parameter's group.
        self._made: dict[nn.Parameter, int] | None = None
        self._reset()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _reset(self) -> None:
        self.memory: dict[str, Any] = {"step": None, "epoch": None, "factors": {}, "counted": []}
        self.memory |= {"engine": None, "groups": None}
        self._failed_in: int | None = None
        self._warned = self._moved = self._resumed = False

    @abstractmethod
    def _begin(self, args: TrainingArguments, state: TrainerState, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the training and call `_attach`; `memory` and `_model` are set."""

    @abstractmethod
    def _find_keys(self, model: nn.Module) -> dict[nn.Parameter, Key]:
        """Return the keys of the parameters, and set `_rows`."""

    @abstractmethod
    def _is_due(self, state: TrainerState) -> bool:
        """Return whether new factors are due before this step."""

    @abstractmethod
    def _update(self, state: TrainerState) -> None:
        """Find new factors, store them in `memory` and call `_apply`."""

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of the constructor, as JSON."""
        return {"config": asdict(self.config)}

    def state(self) -> dict[str, Any]:
        """Return the content of `trainer_state.json` for this callback: numbers and names only."""
        if self._groups is not None:
            self.memory["counted"] = self._groups.counted()
        elif self._optimizer is None:
            # A Trainer asks at the start too, before it loads a checkpoint.
            self._check_checkpoint()
        return {"args": self._arguments(), "attributes": {"memory": self.memory}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find parameters, load the state of a checkpoint, attach to the optimizer."""
        model, optimizer = kwargs["model"], unwrap_optimizer(kwargs["optimizer"])
        check_supported(args, model, optimizer, name=self._name, monitor=self.monitors)
        self._detach()
        other = get_mark(optimizer, FARMS_LR_MARK)
        if other is not None and other is not self:
            other._detach()
            both = "two" if type(other) is type(self) else f"a {type(other).__name__} too"
            raise ValueError(f"callbacks must hold one {self._name}, got {both}. Remove one of them.")
        self._resume(state)
        self._model = model
        self._check_engine(args, optimizer)
        self._wrapped = kwargs["optimizer"] if uses_deepspeed(args) else None
        self._begin(args, state, optimizer)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find new factors if they are due."""
        if self._optimizer is not None and self._is_due(state):
            self._update(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send the effective rates of the last step to the trackers, beside the Trainer's own learning rate."""
        if self._groups is not None and "learning_rate" in (kwargs.get("logs") or {}):
            rates = effective_rates(self._rows, self._groups.rates(), self.config.quantity)
            logs = {f"{self.prefix}/{name}": number for name, number in rates.items()}
            log_to_trackers(args, state, logs, kwargs.get("model"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach from the optimizer."""
        self._detach()
        if self.memory["step"] is not None and not self._moved and not self.monitors:
            message = f"{self._name} had no effect: all factors were 1{self.unmoved}."
            warnings.warn(message, NoEffectWarning, stacklevel=2)

    def _resume(self, state: TrainerState) -> None:
        """Load the memory of the checkpoint being resumed; a fresh run gets a fresh one."""
        saved = saved_callback_state(state, self._name)
        self._reset()
        if isinstance(saved, list):
            raise ValueError(f"callbacks must hold one {self._name}, got two in the checkpoint. Remove one of them.")
        if saved:
            self._resumed = True
            self._load(saved)
        register_callback_state(state, self._name, self.state())

    def _load(self, saved: dict[str, Any]) -> None:
        """Load the state of the checkpoint that is resumed, as `state` returned it."""
        self.memory |= saved["attributes"]["memory"]

    def _attach(self, optimizer: torch.optim.Optimizer, keys: dict[nn.Parameter, Key]) -> None:
        """Give the parameters of the optimizer the factors of their keys; if only monitored, leave it as it is."""
        self._optimizer = optimizer
        set_mark(optimizer, FARMS_LR_MARK, self)
        if self.monitors:
            return
        self._groups = self._groups_of(optimizer, keys)
        self._groups.resume(self.memory["counted"])
        self._apply()
        if self.config.quantity == "weight_decay" and not any(g.get("weight_decay") for g in optimizer.param_groups):
            message = "the optimizer decays no weights. Set weight_decay in TrainingArguments."
            warnings.warn(f"quantity='weight_decay' has no effect: {message}", NoEffectWarning, stacklevel=2)

    def _groups_of(
        self, optimizer: torch.optim.Optimizer, keys: dict[nn.Parameter, Key]
    ) -> LayerwiseGroups | ZeroGroups:
        quantity = self.config.quantity
        if self._wrapped is None:
            return LayerwiseGroups(optimizer, keys, quantity, renew=self._renew_keys)
        assert self._model is not None
        wrapped, self._wrapped = self._wrapped, None
        return deepspeed_groups(wrapped, optimizer, self._model, keys, quantity, made=self._made, name=self._name)

    def split_groups(self, groups: list[Group], model: nn.Module, state: TrainerState) -> list[Group]:
        """Split the groups of an optimizer that is to be made, so that the parameters of each follow the same names."""
        with warnings.catch_warnings():
            # The start of the training gives the warnings.
            warnings.simplefilter("ignore", HfFarmsWarning)
            keys = self._early_keys(model, state)
        finer, self._made = split_by_key(groups, keys)
        check_made_groups(resumed_memory(self._name), finer)
        return finer

    def _check_checkpoint(self) -> None:
        """Reject a checkpoint of another engine or other groups that a Trainer is about to load."""
        check_resumed_checkpoint(self._name, loads_anyway=True)
        check_unmade_groups(resumed_memory(self._name), self)

    def _early_keys(self, model: nn.Module, state: TrainerState) -> dict[nn.Parameter, Key]:
        """Return the keys before the training starts."""
        return self._find_keys(model)

    def _check_engine(self, args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
        """Warn if the checkpoint is one of DeepSpeed, and the training is not: the Trainer finds no optimizer in it."""
        engine = engine_name(args) if uses_deepspeed(args) else None
        earlier = self.memory["engine"]
        tagged = [group[TAG] for group in optimizer.param_groups if TAG in group]
        self.memory |= {"engine": engine, "groups": tagged or None}
        if self._resumed and earlier and not engine:
            self._warn(
                f"the checkpoint was written under {earlier}, this training runs without DeepSpeed: the optimizer "
                "starts anew. Resume under the same engine to continue exactly."
            )

    def _renew_keys(self) -> dict[nn.Parameter, Key]:
        """Find the keys again after the optimizer's parameters have changed; the model may have new modules too."""
        assert self._model is not None
        with warnings.catch_warnings():
            # The first search has given the warnings about this model.
            warnings.simplefilter("ignore", HfFarmsWarning)
            try:
                return self._find_keys(self._model)
            except Exception as error:  # no change of the model may end the training here
                failure = error
        self._warn(f"Parameters that are added to the optimizer have factor 1: {error_text(failure)}")
        return {}

    def _warn(self, message: str) -> None:
        warnings.warn(message, HfFarmsWarning, stacklevel=4)

    def _warn_of_failure(self, state: TrainerState, error: Exception) -> None:
        """Warn once that new factors could not be found: this must not end a training."""
        if not self._warned:
            self._warned = True
            self._warn(f"Learning rates stay as they are at step {state.global_step}: {error_text(error)}")

    def _apply(self) -> None:
        """Set the factors of the memory on the optimizer's groups."""
        if self._groups is not None:
            self._groups.set_factors(self.memory["factors"])
        self._moved |= any(factor != 1 for factor in self.memory["factors"].values())

    def _detach(self) -> None:
        if self._groups is not None:
            self._groups.remove()
        if self._optimizer is not None:
            clear_mark(self._optimizer, FARMS_LR_MARK)
        self._groups = self._optimizer = self._model = None
        self._rows = {}
