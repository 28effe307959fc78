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
from transformers.trainer_callback import ExportableState

from hf_farms.allocation.lr import allocate_lr, smoothed
from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks.compatibility import check_supported
from hf_farms.callbacks.groups import Key, LayerwiseGroups, innermost
from hf_farms.callbacks.history import History, recording, said
from hf_farms.callbacks.parameter_layers import layers_by_parameter
from hf_farms.callbacks.recording import record_training
from hf_farms.callbacks.schedule import as_config, schedule, whole_epochs
from hf_farms.config import FarmsLRConfig
from hf_farms.distributed import ONE_PROCESS, agreed, launched_ranks
from hf_farms.errors import HfFarmsWarning, NoEffectWarning
from hf_farms.reports import SpectralReport
from hf_farms.spectra.analysis import analyze

__all__ = ["FarmsLRCallback"]

NAME = "FarmsLRCallback"
MARK = "_hf_farms_lr"


class FarmsLRCallback(TrainerCallback, ExportableState):
    """Badly trained layers (large alpha) learn faster, well trained ones slower (TempBalance, NeurIPS 2023).

    `Trainer(..., callbacks=[FarmsLRCallback()])` or `trainer.add_callback(FarmsLRCallback())` is all it takes. Alphas
    are measured every `interval` steps, on windows of one aspect ratio (FARMS, arXiv 2506.06280), and become factors on
    the learning rate that the scheduler gives. Checkpoints are those of a Trainer without it; beside them
    `trainer_state.json` keeps the alphas, so that a resumed run goes on exactly.

    Parameters that are unfrozen, or join the optimizer, while training get the factors of their layers. A measurement
    that fails ends no training: it is one warning, and the rates stay as they are. `farms_lr.jsonl` in `output_dir`, in
    a search of hyper-parameters in the folder of the trial, has every measurement.

    Time: one analysis for each measurement, nothing in the steps between.

    Args:
        config: options, also as a mapping of them.

    Raises:
        ValueError: at the start of the training: with an optimizer whose step cannot be given groups (DeepSpeed,
            GaLore layer-wise, LOMO, FSDP 1), or with a second instance.
    """

    def __init__(self, config: FarmsLRConfig | Mapping[str, Any] | None = None) -> None:
        self.config = as_config(config)
        self._source: ModelBlockSource | None = None
        self._model: nn.Module | None = None
        self._running = False
        self._groups: LayerwiseGroups | None = None
        self._history: History | None = None
        self._reset()

    def _reset(self) -> None:
        # What a resumed run needs: step and epoch of the last measurement, alphas of layers and blocks, factors, and
        # what the optimizer counts for each layer.
        self.memory: dict[str, Any] = {"step": None, "epoch": None, "layers": {}, "blocks": {}, "factors": {}}
        self.memory["counted"] = []
        self._failed_in: int | None = None
        self._seconds = 0.0
        self._warned = self._moved = False

    def state(self) -> dict[str, Any]:
        """What is written into `trainer_state.json`: numbers and names only."""
        if self._groups is not None:
            self.memory["counted"] = self._groups.counted()
        return {"args": {"config": asdict(self.config)}, "attributes": {"memory": self.memory}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find layers and parameters, take up the state of a checkpoint, attach to the optimizer."""
        model, optimizer = kwargs["model"], innermost(kwargs["optimizer"])
        check_supported(args, model, optimizer)
        self._detach()
        other = getattr(optimizer, MARK, None)
        if other is not None and other is not self:
            other._detach()
            raise ValueError("callbacks must hold one FarmsLRCallback, got two. Remove one of them.")
        self._begin = time.perf_counter()
        self._take_up(state)
        # A smaller batch size is tried by beginning again.
        again = self._running and getattr(args, "auto_find_batch_size", False)
        self._history = History(args, state, self.memory, self.config, replace=again)
        self._running = True
        self._model = model
        try:
            self._source = ModelBlockSource(model)
            keys = self._keys()
        except Exception as error:  # whatever a foreign model makes the search for its layers stumble over
            warnings.warn(f"FarmsLRCallback has no effect: {said(error)}", NoEffectWarning, stacklevel=2)
            self._source = None
            return
        # Sharded weights are read by all processes together, so each measures all of them.
        self._sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        self._ranks = ONE_PROCESS if self._sharded else launched_ranks()
        self._start, self._interval = schedule(self.config, args, state)
        self._groups = LayerwiseGroups(optimizer, keys, self.config.quantity, renew=self._keys_again)
        setattr(optimizer, MARK, self)
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
        """Measure, if it is time."""
        if self._groups is None or self._source is None or not self._is_due(state):
            return
        begin = time.perf_counter()
        report = self._measure(state)
        if report is None:
            self._failed_in = whole_epochs(state)
        else:
            self._apply()
        seconds = time.perf_counter() - begin
        self._seconds += seconds
        if report is not None and self._history is not None:
            with recording():
                self._history.add(report, self.memory["factors"], seconds, model=kwargs["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log what the measurements cost beside the Trainer's own summary, while the trackers still listen."""
        if self._groups is not None and self._history is not None and "train_runtime" in (kwargs.get("logs") or {}):
            self._history.add_cost(self._seconds, time.perf_counter() - self._begin, model=kwargs.get("model"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the optimizer as it was; have the figure and the section of the card written, and the report."""
        self._detach()
        self._running = False
        if self._history is not None:
            parameters = list(kwargs["model"].parameters())
            with recording():
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
                "FarmsLRCallback had no effect: alphas differed by no more than chance, or scales are 1, so that all "
                "factors were 1.",
                NoEffectWarning,
                stacklevel=2,
            )

    def _take_up(self, state: TrainerState) -> None:
        """The memory of the checkpoint that is resumed; a fresh one for a fresh run."""
        states: Any = state.stateful_callbacks
        saved = states.get(NAME) if state.global_step > 0 and isinstance(states, dict) else None
        self._reset()
        if isinstance(saved, list):
            raise ValueError("callbacks must hold one FarmsLRCallback, got two in the checkpoint. Remove one of them.")
        if saved:
            self.memory |= saved["attributes"]["memory"]
        # The next checkpoint looks it up, also when the last one was written without this callback.
        if isinstance(states, dict):
            states.setdefault(NAME, self.state())

    def _keys(self) -> dict[nn.Parameter, Key]:
        """The layers that each parameter follows, also those that are frozen now and may be trained later."""
        assert self._source is not None
        followed = layers_by_parameter(self._source.model, self._source, outside=self.config.outside, frozen=True)
        if self.config.unit == "layer":
            return followed
        # One group of the optimizer for a block, whatever each of its parameters follows.
        whole: dict[str, Key] = {}
        for index in range(len(self._source)):
            names = tuple(layer.name for layer in self._source.metadata(index).layers)
            whole |= dict.fromkeys(names, names)
        return {parameter: whole.get(names[0], names) for parameter, names in followed.items()}

    def _keys_again(self) -> dict[nn.Parameter, Key]:
        """The same after the optimizer's parameters have changed: the model may have got modules (adapters) too."""
        assert self._model is not None
        with warnings.catch_warnings():
            # What is to be said of the model has been said.
            warnings.simplefilter("ignore", HfFarmsWarning)
            try:
                self._source = ModelBlockSource(self._model)
                return self._keys()
            except Exception as error:  # no change of the model may end the training here
                failure = error
        self._warn(f"Parameters that join the optimizer have factor 1: {said(failure)}")
        return {}

    def _is_due(self, state: TrainerState) -> bool:
        step, last = state.global_step, self.memory["step"]
        if step < self._start or last == step or (self.config.frozen and last is not None):
            return False
        if self._interval is None:
            return whole_epochs(state) not in (self.memory["epoch"], self._failed_in)
        return (step - self._start) % self._interval == 0

    def _measure(self, state: TrainerState) -> SpectralReport | None:
        """Measure, and remember what came of it; None: it failed, and the rates stay."""
        try:
            with torch.no_grad(), warnings.catch_warnings():
                if self.memory["step"] is not None:
                    # What was left out is left out every time.
                    warnings.simplefilter("ignore", HfFarmsWarning)
                report = self._analyze()
            self._remember(report, state)
        except Exception as error:  # a measurement may not end a training, whatever went wrong
            if not self._warned:
                self._warned = True
                self._warn(f"Learning rates stay as they are at step {state.global_step}: {said(error)}")
            return None
        return report

    def _analyze(self) -> SpectralReport:
        source, outside = self._source, self.config.outside
        assert source is not None

        def measured() -> SpectralReport:
            return analyze(source, self.config.farms, outside=outside, ranks=self._ranks)

        # Whole weights that each process has put together: its own rounding is not to make factors of its own.
        report = agreed(measured, launched_ranks()) if self._sharded else measured()
        keep = self.config.smoothing
        return smoothed(report, layers=self.memory["layers"], blocks=self.memory["blocks"], keep=keep)

    def _warn(self, message: str) -> None:
        warnings.warn(message, HfFarmsWarning, stacklevel=4)

    def _remember(self, report: SpectralReport, state: TrainerState) -> None:
        layers = [*(layer for block in report.blocks for layer in block.layers), *report.outside]
        self.memory |= {
            "step": state.global_step,
            "epoch": whole_epochs(state),
            "layers": {layer.name: layer.alpha for layer in layers if layer.alpha is not None},
            "blocks": {block.name: block.alpha for block in report.blocks if block.alpha is not None},
            "factors": allocate_lr(report, config=self.config),
        }

    def _apply(self) -> None:
        """Hand the factors of the memory to the optimizer."""
        assert self._groups is not None
        factors = self.memory["factors"]
        self._groups.set_factors(factors)
        self._moved |= any(factor != 1 for factor in factors.values())

    def _detach(self) -> None:
        if self._groups is not None:
            self._groups.remove()
            vars(self._groups.optimizer).pop(MARK, None)
            self._groups = self._model = None
