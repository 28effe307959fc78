"""Layer-wise learning rates from alphas, in an unmodified Trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_farms.allocation.lr import allocate_lr, smoothed
from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.partitioned import whole_numel
from hf_farms.callbacks.groups import Key
from hf_farms.callbacks.history import History, error_text, warn_on_failure
from hf_farms.callbacks.layerwise import LayerwiseCallback
from hf_farms.callbacks.parameter_layers import layers_by_unit
from hf_farms.callbacks.rates import block_rows
from hf_farms.callbacks.recording import record_training
from hf_farms.callbacks.schedule import decide_interval, schedule, whole_epochs
from hf_farms.callbacks.step_cost import StepCost, measuring_factor
from hf_farms.callbacks.trainer import is_summary, recomputes_activations, retries_batch_sizes, trainer_flops
from hf_farms.config import FarmsLRConfig
from hf_farms.config.effects import given_fields, warn_unused
from hf_farms.config.mappings import as_config
from hf_farms.errors import HfFarmsWarning, ModelError, NoEffectWarning
from hf_farms.processes import launched_ranks
from hf_farms.reports import SpectralReport
from hf_farms.spectra.analysis import analysis_cost, analyze

__all__ = ["FarmsLRCallback"]


class FarmsLRCallback(LayerwiseCallback):
    """Train badly trained layers (large alpha) faster and well trained ones slower (TempBalance, NeurIPS 2023).

    Use it as `Trainer(..., callbacks=[FarmsLRCallback()])` or `trainer.add_callback(FarmsLRCallback())`. It measures
    alphas every `interval` steps, on windows of one aspect ratio (FARMS, arXiv 2506.06280), and multiplies the learning
    rate of the scheduler by a factor for each layer. Checkpoints are the same as without it, except that
    `trainer_state.json` stores the alphas, so that a resumed run continues exactly. With `monitor=True` it measures and
    logs only.

    Parameters that are unfrozen or added to the optimizer during the training get the factors of their layers. If a
    measurement fails, the training continues with the current rates and warns once. All measurements are written to
    `farms_lr.jsonl` in `output_dir`; in a hyperparameter search, in the folder of the trial. Trackers get alphas,
    factors and effective rates, TensorBoard and W&B also a figure.

    Time: one analysis for each measurement, nothing in the steps between; by default about 1% of the training.

    Args:
        config: options, also as a mapping.

    Raises:
        ValueError: at the start of the training, if the step of the optimizer cannot be given groups (GaLore
            layer-wise, LOMO, FSDP1), if a config of DeepSpeed has an optimizer or scheduler of its own, or beside
            another callback of layer-wise rates.
    """

    prefix = "farms_lr"
    config: FarmsLRConfig
    unmoved = ", because alphas differed by no more than chance, fewer than two were compared, or the scales are 1"

    def __init__(self, config: FarmsLRConfig | Mapping[str, Any] | None = None) -> None:
        self.config = as_config(FarmsLRConfig, config)
        warn_unused(self.config)
        self._source: ModelBlockSource | None = None
        self._running = False
        self._history: History | None = None
        self._cost: StepCost | None = None
        super().__init__()

    @property
    def monitors(self) -> bool:  # type: ignore[override]
        """Whether it only measures and logs."""
        return self.config.monitor

    def _reset(self) -> None:
        super()._reset()
        # Alphas of the last measurement, and the interval that was decided for "auto".
        self.memory |= {"layers": {}, "blocks": {}, "interval": None}
        self._earlier: int | float | str | None = None
        self._seconds = 0.0

    def _load(self, saved: dict[str, Any]) -> None:
        super()._load(saved)
        if "interval" not in saved["attributes"]["memory"]:
            # Of an earlier version, whose default was a number.
            self._earlier = saved["args"]["config"].get("interval")

    def _begin(self, args: TrainingArguments, state: TrainerState, optimizer: torch.optim.Optimizer) -> None:
        self._start_time = time.perf_counter()
        restarted = self._running and retries_batch_sizes(args)
        self._history = History(args, state, self.memory["step"], self.config, replace=restarted)
        self._running = True
        if self.config.interval == "auto" and isinstance(earlier := self._earlier, int | float):
            self.memory["interval"] = earlier if isinstance(earlier, int) else max(1, round(earlier * state.max_steps))
        times = schedule(self.config, args, state, decided=self.memory["interval"])
        assert self._model is not None
        try:
            keys = self._find_keys(self._model)
        except Exception as error:  # models are code of others
            warnings.warn(f"FarmsLRCallback has no effect: {error_text(error)}", NoEffectWarning, stacklevel=2)
            self._source = None
            return
        self._ranks = launched_ranks()
        self._schedule, self._recomputes = times, recomputes_activations(args)
        self._attach(optimizer, keys)
        if self._groups is not None and not self._groups.keys:
            warnings.warn(
                "FarmsLRCallback has no effect: the optimizer holds no parameter of a layer that can be measured.",
                NoEffectWarning,
                stacklevel=2,
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure if a measurement is due; count the cost of the first step if the interval is "auto"."""
        super().on_step_begin(args, state, control, **kwargs)
        if self._optimizer is None or self._source is None or self.config.frozen:
            return
        if self.config.interval == "auto" and self.memory["interval"] is None and self._cost is None:
            try:
                self._cost = StepCost(self._source, recomputes=self._recomputes)
            except Exception as error:  # modules are code of others
                self._decide(state, 0.0, error)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide the interval after the first step, if it is "auto"."""
        if self._cost is not None and self._optimizer is not None:
            self._cost.remove()
            cost = self._cost.multiply_adds
            if not cost and getattr(self._cost.model, "main_input_name", None) == "input_ids":
                # A compiled model. The Trainer counts elements of the main input: tokens, but not those of images.
                cost = trainer_flops() / 2
            self._decide(state, cost)
        self._cost = None

    def _decide(self, state: TrainerState, step_cost: float, error: Exception | None = None) -> None:
        """Decide the interval, print it, and keep it for a resumed run; one measurement if costs are unknown."""
        assert self._source is not None
        assert self._model is not None
        measuring = 0.0
        # All ranks decide the same.
        costs = sum(self._ranks.gather(step_cost)) / self._ranks.count
        try:
            measuring = analysis_cost(self._source, self.config.spectra, outside=self.config.outside)
        except ModelError as failure:
            error = failure
        if error is not None:
            self._warn_of_failure(state, error)
        measuring *= measuring_factor(next(self._model.parameters()).device.type) / self._ranks.count
        share = measuring / (costs * state.max_steps) if costs and measuring else None
        first = self._schedule.first_step
        interval = decide_interval(first, state.max_steps, self.config.max_share / share if share else 1)
        self.memory["interval"] = interval
        self._schedule = replace(self._schedule, interval=interval)
        if self._history is not None:
            with warn_on_failure():
                self._history.add_interval(first, interval, share, model=self._model)

    def _update(self, state: TrainerState) -> None:
        start, model = time.perf_counter(), self._model
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
                self._history.add(report, self.memory["factors"], seconds, model=model)
                self._history.send_figure()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log effective rates; with the Trainer's own summary the figure and the time of the measurements."""
        super().on_log(args, state, control, **kwargs)
        # At the summary the trackers still accept logs.
        if self._optimizer is not None and self._history is not None and is_summary(kwargs.get("logs")):
            self._history.add_cost(self._seconds, time.perf_counter() - self._start_time, model=kwargs.get("model"))
            with warn_on_failure():
                self._history.send_figure(last=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach from the optimizer; write the figure, the section of the card and the report."""
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
                    num_parameters=sum(map(whole_numel, parameters)),
                    num_trained=sum(whole_numel(p) for p in parameters if p.requires_grad),
                )
        super().on_train_end(args, state, control, **kwargs)

    def _find_keys(self, model: nn.Module) -> dict[nn.Parameter, Key]:
        self._source = ModelBlockSource(model)
        keys = layers_by_unit(self._source, outside=self.config.outside, unit=self.config.unit)
        self._rows = block_rows(self._source, keys, self.config.unit)
        return keys

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
            self._warn_of_failure(state, error)
            return None
        return report

    def _analyze(self) -> SpectralReport:
        source, outside = self._source, self.config.outside
        assert source is not None
        report = analyze(source, self.config.spectra, outside=outside, ranks=self._ranks)
        keep = self.config.smoothing
        return smoothed(report, layers=self.memory["layers"], blocks=self.memory["blocks"], keep=keep)

    def _store(self, report: SpectralReport, state: TrainerState) -> None:
        layers = [*(layer for block in report.blocks for layer in block.layers), *report.outside]
        self.memory |= {
            "step": state.global_step,
            "epoch": whole_epochs(state),
            "layers": {layer.name: layer.alpha for layer in layers if layer.alpha is not None},
            "blocks": {block.name: block.alpha for block in report.blocks if block.alpha is not None},
            "factors": self._allocate(report),
        }

    def _allocate(self, report: SpectralReport) -> dict[str, float]:
        if self.monitors:
            return {layer.name: 1.0 for block in report.blocks for layer in block.layers}
        return allocate_lr(report, config=self.config)

    def _detach(self) -> None:
        super()._detach()
        if self._cost is not None:
            self._cost.remove()
            self._cost = None
