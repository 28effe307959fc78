"""When a callback measures: its first step, and the steps between two measurements."""

from __future__ import annotations

import warnings

from transformers import TrainerState, TrainingArguments

from hf_farms.config import FarmsLRConfig
from hf_farms.errors import NoEffectWarning

__all__ = ["schedule", "whole_epochs"]


def whole_epochs(state: TrainerState) -> int:
    """Whole epochs done; the state has them as a fraction, up to rounding."""
    return int((state.epoch or 0.0) + 1e-6)


def schedule(config: FarmsLRConfig, args: TrainingArguments, state: TrainerState) -> tuple[int, int | None]:
    """First step that measures, and steps between two; None for every epoch. Warns where either is beyond the end."""
    total = state.max_steps
    if config.start == "warmup":
        start = int(args.get_warmup_steps(total))
    else:
        start = config.start if isinstance(config.start, int) else round(config.start * total)
    given = config.interval
    steps = max(1, round(given * total)) if isinstance(given, float) else None if given == "epoch" else given
    nothing = None
    if start >= total:
        nothing = f"FarmsLRCallback has no effect: it starts at step {start} of {total}."
    elif not config.frozen and (state.num_train_epochs <= 1 if given == "epoch" else given >= total):
        nothing = (
            f"interval={given!r} has no effect: the training has {total} steps in {state.num_train_epochs} epochs, so "
            f"that alphas are measured once, at step {start}. Set a smaller interval, or frozen=True."
        )
    if nothing:
        warnings.warn(nothing, NoEffectWarning, stacklevel=3)
    return start, steps
