"""Layer-wise learning rates in an unmodified Trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_farms.allocation.lr import allocate_lr, smoothed
from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks.compatibility import check_supported
from hf_farms.callbacks.groups import Key, LayerwiseGroups
from hf_farms.callbacks.history import History, error_text, warn_on_failure
from hf_farms.callbacks.parameter_layers import layers_by_unit
from hf_farms.callbacks.recording import record_training
from hf_farms.callbacks.schedule import Schedule, schedule, whole_epochs
from hf_farms.callbacks.trainer import (
    FARMS_LR_MARK,
    ExportableState,
    clear_mark,
    get_mark,
    is_summary,
    register_callback_state,
    retries_batch_sizes,
    saved_callback_state,
    set_mark,
    unwrap_optimizer,
)
from hf_farms.config import FarmsLRConfig
from hf_farms.config.effects import given_fields, warn_unused
from hf_farms.config.mappings import as_config
from hf_farms.distributed import ONE_PROCESS, first_rank_result, launched_ranks
from hf_farms.errors import HfFarmsWarning, NoEffectWarning
from hf_farms.reports import SpectralReport
from hf_farms.spectra.analysis import analyze

__all__ = ["FarmsLRCallback"]

NAME = "FarmsLRCallback"


class FarmsLRCallback(TrainerCallback, ExportableState):
    """Train badly trained layers (large alpha) faster and well trained ones slower (TempBalance, NeurIPS 2023).

    Use it as `Trainer(..., callbacks=[FarmsLRCallback()])` or `trainer.add_callback(FarmsLRCallback())`. It measures
    alphas every `interval` steps, on windows of one aspect ratio (FARMS, arXiv 2506.06280), and multiplies the learning
    rate of the scheduler by a factor for each layer. Checkpoints are the same as without it, except that
    `trainer_state.json` stores the alphas, so that a resumed run continues exactly.

    Parameters that are unfrozen or added to the optimizer during the training get the factors of their layers. If a
    measurement fails, the training continues with the current rates and warns once. All measurements are written to
    `farms_lr.jsonl` in `output_dir`; in a hyperparameter search, in the folder of the trial.

    Time: one analysis for each measurement, nothing in the steps between.

    Args:
        config: options, also as a mapping.

    Raises:
        ValueError: at the start of the training, if the step of the optimizer cannot be given groups (DeepSpeed, GaLore
            layer-wise, LOMO, FSDP 1), or with a second instance.
    """

    def __init__(self, config: FarmsLRConfig | Mapping[str, Any] | None = None) -> None:
        self.config = as_config(FarmsLRConfig, config)
        warn_unused(self.config)
        self._source: ModelBlockSource | None = None
        self._model: nn.Module | None = None
        self._running = False
        self._groups: LayerwiseGroups | None = None
        self._history: History | None = None
        self._reset()

    def _reset(self) -> None:
        # For a resumed run: step and epoch of the last measurement, alphas of layers and blocks, factors, and the
        # counters that the optimizer keeps for each layer.
        self.memory: dict[str, Any] = {"step": None, "epoch": None, "layers": {}, "blocks": {}, "factors": {}}
        self.memory["counted"] = []
        self._failed_in: int | None = None
        self._seconds = 0.0
        self._warned = self._moved = False

    def state(self) -> dict[str, Any]:
        """Return the content of `trainer_state.json` for this callback: numbers and names only."""
        if self._groups is not None:
            self.memory["counted"] = self._groups.counted()
        return {"args": {"config": asdict(self.config)}, "attributes": {"memory": self.memory}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find layers and parameters, load the state of a checkpoint, attach to the optimizer."""
        model, optimizer = kwargs["model"], unwrap_optimizer(kwargs["optimizer"])
        check_supported(args, model, optimizer)
        self._detach()
        other = get_mark(optimizer, FARMS_LR_MARK)
        if other is not None and other is not self:
            other._detach()
            raise ValueError("callbacks must hold one FarmsLRCallback, got two. Remove one of them.")
        self._start_time = time.perf_counter()
        self._resume(state)
        restarted = self._running and retries_batch_sizes(args)
        self._history = History(args, state, self.memory["step"], self.config, replace=restarted)
        self._running = True
        self._model = model
        self._attach(optimizer, model, schedule(self.config, args, state))

    def _attach(self, optimizer: torch.optim.Optimizer, model: nn.Module, times: Schedule) -> None:
        """Give the parameters of the optimizer the factors of their layers, if the layers can be found."""
        try:
            self._source = ModelBlockSource(model)
            keys = self._keys()
        except Exception as error:  # models are code of others
            warnings.warn(f"FarmsLRCallback has no effect: {error_text(error)}", NoEffectWarning, stacklevel=2)
            self._source = None
            return
        # All processes have to read a sharded weight together, so each measures all of them.
        self._sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        self._ranks = ONE_PROCESS if self._sharded else launched_ranks()
        self._schedule = times
        self._groups = LayerwiseGroups(optimizer, keys, self.config.quantity, renew=self._renew_keys)
        set_mark(optimizer, FARMS_LR_MARK, self)
        if not self._groups.keys:
            warnings.warn(
                "FarmsLRCallback has no effect: the optimizer holds no parameter of a layer that can be measured.",
                NoEffectWarning,
                stacklevel=2,
            )
        self._groups.resume(self.memory["counted"])
        self._apply()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure if a measurement is due."""
        if self._groups is None or self._source is None or not self._is_due(state):
            return
        start = time.perf_counter()
        with given_fields(()):  # the constructor has warned
            report = self._measure(state)
        if report is None:
            self._failed_in = whole_epochs(state)
        else:
            self._apply()
        seconds = time.perf_counter() - start
        self._seconds += seconds
        if report is not None and self._history is not None:
            with warn_on_failure():
                self._history.add(report, self.memory["factors"], seconds, model=kwargs["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the time of the measurements with the Trainer's own summary, while the trackers still accept logs."""
        if self._groups is not None and self._history is not None and is_summary(kwargs.get("logs")):
            self._history.add_cost(self._seconds, time.perf_counter() - self._start_time, model=kwargs.get("model"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach from the optimizer; write the figure, the section of the card and the report."""
        self._detach()
        self._running = False
        if self._history is not None:
            parameters = list(kwargs["model"].parameters())
            with warn_on_failure():
                self._history.draw()
                record_training(
                    args,
                    state,
                    kwargs["model"],
                    farms_lr=self.config,
                    num_parameters=sum(p.numel() for p in parameters),
                    num_trained=sum(p.numel() for p in parameters if p.requires_grad),
                )
        if self.memory["step"] is not None and not self._moved:
            warnings.warn(
                "FarmsLRCallback had no effect: all factors were 1, because alphas differed by no more than chance, "
                "fewer than two were compared, or the scales are 1.",
                NoEffectWarning,
                stacklevel=2,
            )

    def _resume(self, state: TrainerState) -> None:
        """Load the memory of the checkpoint being resumed; a fresh run gets a fresh one."""
        saved = saved_callback_state(state, NAME)
        self._reset()
        if isinstance(saved, list):
            raise ValueError("callbacks must hold one FarmsLRCallback, got two in the checkpoint. Remove one of them.")
        if saved:
            self.memory |= saved["attributes"]["memory"]
        register_callback_state(state, NAME, self.state())

    def _keys(self) -> dict[nn.Parameter, Key]:
        assert self._source is not None
        return layers_by_unit(self._source, outside=self.config.outside, unit=self.config.unit)

    def _renew_keys(self) -> dict[nn.Parameter, Key]:
        """Find the keys again after the optimizer's parameters have changed; the model may have new modules too."""
        assert self._model is not None
        with warnings.catch_warnings():
            # The first search has given the warnings about this model.
            warnings.simplefilter("ignore", HfFarmsWarning)
            try:
                self._source = ModelBlockSource(self._model)
                return self._keys()
            except Exception as error:  # no change of the model may end the training here
                failure = error
        self._warn(f"Parameters that are added to the optimizer have factor 1: {error_text(failure)}")
        return {}

    def _is_due(self, state: TrainerState) -> bool:
        last, epochs = self.memory["step"], (self.memory["epoch"], self._failed_in)
        return self._schedule.is_due(state, last_step=last, epochs_done=epochs)

    def _measure(self, state: TrainerState) -> SpectralReport | None:
        """Measure and store the result; return None if the measurement failed and the rates stay."""
        try:
            with torch.no_grad(), warnings.catch_warnings():
                if self.memory["step"] is not None:
                    # The first measurement has warned about layers that are left out and ends that leave too few.
                    warnings.simplefilter("ignore", HfFarmsWarning)
                report = self._analyze()
                self._store(report, state)
        except Exception as error:  # a failed measurement must not end the training
            if not self._warned:
                self._warned = True
                self._warn(f"Learning rates stay as they are at step {state.global_step}: {error_text(error)}")
            return None
        return report

    def _analyze(self) -> SpectralReport:
        source, outside = self._source, self.config.outside
        assert source is not None

        def measured() -> SpectralReport:
            return analyze(source, self.config.spectra, outside=outside, ranks=self._ranks)

        # Each process gathers the whole weights; rounding of its own must not give it other factors.
        report = first_rank_result(measured, launched_ranks()) if self._sharded else measured()
        keep = self.config.smoothing
        return smoothed(report, layers=self.memory["layers"], blocks=self.memory["blocks"], keep=keep)

    def _warn(self, message: str) -> None:
        warnings.warn(message, HfFarmsWarning, stacklevel=4)

    def _store(self, report: SpectralReport, state: TrainerState) -> None:
        layers = [*(layer for block in report.blocks for layer in block.layers), *report.outside]
        self.memory |= {
            "step": state.global_step,
            "epoch": whole_epochs(state),
            "layers": {layer.name: layer.alpha for layer in layers if layer.alpha is not None},
            "blocks": {block.name: block.alpha for block in report.blocks if block.alpha is not None},
            "factors": allocate_lr(report, config=self.config),
        }

    def _apply(self) -> None:
        """Set the factors of the memory on the optimizer's groups."""
        assert self._groups is not None
        factors = self.memory["factors"]
        self._groups.set_factors(factors)
        self._moved |= any(factor != 1 for factor in factors.values())

    def _detach(self) -> None:
        if self._groups is not None:
            self._groups.remove()
            clear_mark(self._groups.optimizer, FARMS_LR_MARK)
            self._groups = self._model = None
