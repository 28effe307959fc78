"""Steps at which FarmsLRCallback measures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container
from dataclasses import dataclass

from transformers import TrainerState, TrainingArguments

from hf_farms.config import FarmsLRConfig
from hf_farms.errors import NoEffectWarning

__all__ = ["Schedule", "decide_interval", "schedule", "whole_epochs"]

# With interval "auto".
MOST_MEASUREMENTS = 10


def whole_epochs(state: TrainerState) -> int:
    """Return the number of completed epochs; the state has a fraction, up to rounding."""
    return int((state.epoch or 0.0) + 1e-6)


@dataclass(frozen=True)
class Schedule:
    """The steps at which FarmsLRCallback measures.

    Attributes:
        first_step: of the first measurement.
        interval: steps between two measurements; None: every epoch.
        once: whether the first measurement is the only one.
    """

    first_step: int
    interval: int | None
    once: bool

    def is_due(self, state: TrainerState, *, last_step: int | None, epochs_done: Container[int | None]) -> bool:
        """Return whether to measure before this step.

        Args:
            state: of the Trainer.
            last_step: of the last measurement; None: there was none.
            epochs_done: the epochs in which a measurement succeeded or failed last.
        """
        step = state.global_step
        if step < self.first_step or last_step == step or (self.once and last_step is not None):
            return False
        if self.interval is None:
            return whole_epochs(state) not in epochs_done
        return (step - self.first_step) % self.interval == 0


def schedule(config: FarmsLRConfig, args: TrainingArguments, state: TrainerState, *, decided: int | None) -> Schedule:
    """Convert the options to steps of this training; warn if it ends before the first or the second measurement.

    Args:
        config: options.
        args: of the Trainer.
        state: of the Trainer.
        decided: interval that was decided for "auto"; None: not yet, so that the first measurement is the only one.
    """
    total = state.max_steps
    if config.start == "warmup":
        start = int(args.get_warmup_steps(total))
    else:
        start = config.start if isinstance(config.start, int) else round(config.start * total)
    option = config.interval
    interval: int | None
    if option == "auto":
        interval = decided or total
    else:
        interval = max(1, round(option * total)) if isinstance(option, float) else None if option == "epoch" else option
    message = None
    if start >= total:
        message = f"FarmsLRCallback has no effect: it starts at step {start} of {total}."
    elif config.frozen or option == "auto":
        pass
    elif state.num_train_epochs <= 1 if option == "epoch" else option >= total:
        message = (
            f"interval={option!r} has no effect: the training has {total} steps in {state.num_train_epochs} epochs, so "
            f"that alphas are measured once, at step {start}. Set a smaller interval, or frozen=True and no interval."
        )
    if message:
        warnings.warn(message, NoEffectWarning, stacklevel=3)
    return Schedule(start, interval, config.frozen)


def decide_interval(first_step: int, total: int, allowed: float) -> int:
    """Return the interval for "auto".

    Args:
        first_step: of the first measurement.
        total: steps of the training.
        allowed: measurements that the share of the time allows; a fraction is rounded down.

    Returns:
        A tenth of all steps, or more so that there are at most as many measurements as allowed, and at least one.
    """
    left = max(1, total - first_step)
    count = max(1, min(MOST_MEASUREMENTS, math.floor(allowed)))
    return max(1, round(total / MOST_MEASUREMENTS), math.ceil(left / count))
