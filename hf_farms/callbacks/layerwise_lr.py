"""LayerwiseLRCallback: layer-wise learning rates from factors of the user."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_farms.blocks.partitioned import whole_numel
from hf_farms.callbacks.factors import Factors, LRProgress, PatternFactors, parameters_by_pattern, progress_of
from hf_farms.callbacks.groups import Key
from hf_farms.callbacks.history import warn_on_failure
from hf_farms.callbacks.layerwise import LayerwiseCallback
from hf_farms.callbacks.rates import MOST_LOGGED, pattern_rows
from hf_farms.callbacks.recording import record_training
from hf_farms.callbacks.schedule import Schedule, whole_epochs
from hf_farms.callbacks.trainer import insert_before_last, log_to_trackers
from hf_farms.config import LayerwiseLRConfig
from hf_farms.config.mappings import as_config
from hf_farms.errors import HfFarmsError, NoEffectWarning
from hf_farms.processes import all_rank_results, check_same, launched_ranks
from hf_farms.reports.training import LayerwiseLRRecord

__all__ = ["LayerwiseLRCallback"]

STORED = "they are functions, which checkpoints cannot store"


class LayerwiseLRCallback(LayerwiseCallback):
    r"""Multiply the learning rate or the weight decay of parameters by factors, in an unmodified Trainer.

    Use it as `Trainer(..., callbacks=[LayerwiseLRCallback({"embed_tokens": 0.1})])` or `trainer.add_callback(...)`.
    The scheduler's learning rate is multiplied, bit by bit as with parameter groups of an optimizer made by hand;
    optimizer, scheduler and checkpoints stay those of a plain Trainer, and resume exactly.

    Names are those of `model.named_parameters()`; a pattern is a regular expression that matches anywhere in a name,
    and the first pattern that matches counts. Parameters without a match have factor 1.

    Example:
        ```python
        LayerwiseLRCallback({r"\.embed_tokens\.": 0.1, r"\.layers\.[0-3]\.": 0.5})  # fixed
        LayerwiseLRCallback(layerwise_decay(model, 0.9))  # layer-wise decay (LLRD)
        LayerwiseLRCallback({"classifier": lambda progress: 1 + 9 * progress.fraction})  # scheduled
        LayerwiseLRCallback({"embed": 0.0}, LayerwiseLRConfig(quantity="weight_decay"))
        LayerwiseLRCallback(measure)  # a function of the progress that returns a mapping of patterns
        ```

    Functions are called before every step, or as often as `config.interval` says; they must return the same patterns
    every time. If a function fails during the training, it continues with the last factors and warns once. On several
    processes all of them call the functions, and the factors of the first one count on all; this costs an exchange of
    a few numbers for each call. To make factors follow the spectra of the weights use `FarmsLRCallback`.

    Args:
        factors: factors by pattern, each a number or a function of the progress (`LRProgress`), or a function of the
            progress that returns numbers by pattern. 0 stops a parameter.
        config: options, also as a mapping.

    Raises:
        ValueError: an invalid pattern or factor; at the start of the training, if the step of the optimizer cannot be
            given groups (GaLore layer-wise, LOMO, FSDP1), a config of DeepSpeed has an optimizer or scheduler of its
            own, beside another callback of layer-wise rates, or with other numbers than those of another process.
    """

    prefix = "layerwise_lr"
    config: LayerwiseLRConfig

    def __init__(self, factors: Factors, config: LayerwiseLRConfig | Mapping[str, Any] | None = None) -> None:
        if factors is None:
            # A Trainer that makes its callbacks anew from a checkpoint.
            raise ValueError(
                f"factors must be given, got None: {STORED}. Set restore_callback_states_from_checkpoint=False; the "
                "training is resumed exactly without it."
            )
        self.config = as_config(LayerwiseLRConfig, config)
        self._factors = PatternFactors(factors, self.config.quantity)
        if self._factors.is_fixed and self.config.interval != LayerwiseLRConfig.interval:
            message = "`interval` has no effect: it applies to functions, and all factors are numbers."
            warnings.warn(message, NoEffectWarning, stacklevel=2)
        super().__init__()

    def _arguments(self) -> dict[str, Any]:
        return {"factors": self._factors.to_json(), **super()._arguments()}

    def _reset(self) -> None:
        super()._reset()
        # The factors in the log, and the patterns, which stay the same during a training.
        self._logged: dict[str, float] = {}
        # Whether processes had different factors, which is said once.
        self._differed = False
        self._patterns: list[str] = []

    def _begin(self, args: TrainingArguments, state: TrainerState, optimizer: torch.optim.Optimizer) -> None:
        interval = None if self.config.interval == "epoch" else self.config.interval
        self._schedule = Schedule(0, interval, once=self._factors.is_fixed)
        # Before the first step an error costs nothing, so it is raised.
        factors = self._shared_factors(self._progress(state))
        self._patterns = list(factors)
        if self.memory["step"] is None or self._factors.is_fixed or self.memory["factors"].keys() != factors.keys():
            if self.memory["step"] is not None:
                self._warn_of_change(factors)
            self.memory |= {"step": state.global_step, "epoch": whole_epochs(state), "factors": factors}
        assert self._model is not None
        self._attach(optimizer, self._find_keys(self._model))

    def _warn_of_change(self, factors: Mapping[str, float]) -> None:
        """Name the factors that differ from those of the checkpoint."""
        earlier = self.memory["factors"]
        changed = [p for p in dict.fromkeys([*earlier, *factors]) if earlier.get(p) != factors.get(p)]
        if changed:
            texts = [f"{pattern!r} {earlier.get(pattern)} -> {factors.get(pattern)}" for pattern in changed[:5]]
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            self._warn(f"factors differ from those of the checkpoint, the new ones count: {', '.join(texts)}{more}.")

    def _warn_of_unmatched(self, matches: Mapping[nn.Parameter, tuple[str, ...]]) -> None:
        """Name the patterns without a parameter, or with frozen ones only."""
        matching = {pattern for own in matches.values() for pattern in own}
        trained = {pattern for parameter, own in matches.items() if parameter.requires_grad for pattern in own}
        for pattern in self._patterns:
            if pattern not in matching:
                reason = "has no effect: it matches no parameter."
            elif pattern not in trained:
                reason = "has no effect yet: it matches frozen parameters only."
            else:
                continue
            warnings.warn(f"pattern {pattern!r} {reason}", NoEffectWarning, stacklevel=2)

    def _find_keys(self, model: nn.Module) -> dict[nn.Parameter, Key]:
        matches = parameters_by_pattern(model, self._patterns)
        if self._optimizer is None:
            self._warn_of_unmatched(matches)
        # The first pattern counts.
        keys = {parameter: own[:1] for parameter, own in matches.items() if own}
        self._rows = pattern_rows(keys)
        return keys

    def _early_keys(self, model: nn.Module, state: TrainerState) -> dict[nn.Parameter, Key]:
        self._patterns = list(self._shared_factors(progress_of(state, model)))
        return self._find_keys(model)

    def _shared_factors(self, progress: LRProgress) -> dict[str, float]:
        """Return the factors of the first process on all of them: replicas that step differently drift apart."""
        ranks = launched_ranks()
        if self._factors.is_fixed:
            factors = self._factors.at(progress)
            check_same(ranks, {"factors": factors})
            return factors
        results = all_rank_results(lambda: self._factors.at(progress), ranks)
        if any(other != results[0] for other in results) and not self._differed:
            self._differed = True
            self._warn(
                f"factors differ between processes at step {progress.step}, those of the first process count on all."
            )
        return results[0]

    def _is_due(self, state: TrainerState) -> bool:
        epochs = (self.memory["epoch"], self._failed_in)
        return self._schedule.is_due(state, last_step=self.memory["step"], epochs_done=epochs)

    def _progress(self, state: TrainerState) -> LRProgress:
        assert self._model is not None
        return progress_of(state, self._model)

    def _update(self, state: TrainerState) -> None:
        try:
            factors = self._shared_factors(self._progress(state))
            if list(factors) != self._patterns:
                raise HfFarmsError(
                    f"factors must have the patterns of the start, {self._patterns}, got {list(factors)}.",
                    hint="Return factor 1 for a pattern that is not needed.",
                )
        except Exception as error:  # a function of the user must not end a long training
            self._failed_in = whole_epochs(state)
            self._warn_of_failure(state, error)
            return
        self.memory |= {"step": state.global_step, "epoch": whole_epochs(state), "factors": factors}
        self._apply()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the report of the training; detach from the optimizer."""
        if self._groups is not None:
            parameters = list(kwargs["model"].parameters())
            record = LayerwiseLRRecord(
                config=self.config, factors=dict(self.memory["factors"]), scheduled=not self._factors.is_fixed
            )
            with warn_on_failure():
                record_training(
                    args,
                    state,
                    kwargs["model"],
                    layerwise_lr=record,
                    num_parameters=sum(map(whole_numel, parameters)),
                    num_trained=sum(whole_numel(p) for p in parameters if p.requires_grad),
                )
        super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log factors that have changed since the last log, and send the effective rates to the trackers."""
        factors = self.memory["factors"]
        if self._groups is not None and "learning_rate" in (kwargs.get("logs") or {}) and factors != self._logged:
            self._logged = dict(factors)
            if len(factors) <= MOST_LOGGED:
                logs = {f"{self.prefix}/{pattern}/factor": factor for pattern, factor in factors.items()}
                insert_before_last(state, logs)
                log_to_trackers(args, state, logs, kwargs.get("model"))
        super().on_log(args, state, control, **kwargs)
