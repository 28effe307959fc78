"""Write the TrainReport of a finished training into its output folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_farms.config import FarmsLRConfig, S2FTConfig
from hf_farms.errors import DataError
from hf_farms.reports.base import REPORT_NAME
from hf_farms.reports.folders import report_kind, s2ft_record
from hf_farms.reports.lr_history import HISTORY_NAME, read_history
from hf_farms.reports.metrics import best_step, number, trained_metrics
from hf_farms.reports.training import FarmsLRRecord, LayerwiseLRRecord, TrainReport

__all__ = ["record_training"]

# TrainingArguments that determine the result of a training.
ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "bf16", "fp16", "seed"),
)


def record_training(
    args: Any,
    state: Any,
    model: Any,
    *,
    folder: Path | None = None,
    task: str | None = None,
    num_parameters: int | None = None,
    num_trained: int | None = None,
    farms_lr: FarmsLRConfig | None = None,
    layerwise_lr: LayerwiseLRRecord | None = None,
    s2ft: tuple[S2FTConfig, Mapping[str, Iterable[int]]] | None = None,
) -> Path | None:
    """Write the report of a training that has just finished, for the card.

    Merges with the report that the other callback wrote for the same training. Other reports are not overwritten.

    Args:
        args: TrainingArguments; `output_dir` and the fields in `ARGUMENTS` are read.
        state: TrainerState; step, epoch and log history are read.
        model: the trained model; its config is read.
        folder: folder of the report; None for `output_dir`.
        task: task of the model, by its name on the Hub.
        num_parameters: parameters of the model, without those that S2FT adds.
        num_trained: number of trained parameters.
        farms_lr: options of the layer-wise learning rates.
        layerwise_lr: layer-wise factors of the user.
        s2ft: options of S2FT, and the selected channels of each layer.

    Returns:
        The file; None on processes that do not write, or if the folder contains another report.
    """
    folder = folder or Path(args.output_dir or ".")
    path = folder / REPORT_NAME
    if not state.is_world_process_zero:
        return None
    earlier = _report_of_step(path, int(state.global_step))
    if path.is_file() and earlier is None and report_kind(path) != "training":
        return None
    config = getattr(model, "config", None)
    best = best_step(state) if getattr(args, "load_best_model_at_end", False) else None
    report = TrainReport(
        model=getattr(config, "_name_or_path", None) or None,
        model_type=getattr(config, "model_type", None) or type(model).__name__,
        num_parameters=num_parameters,
        num_trained=num_trained,
        steps=int(state.global_step),
        epochs=number(state.epoch),
        arguments={name: _json_value(getattr(args, name)) for name in ARGUMENTS if hasattr(args, name)},
        metrics=trained_metrics(state.log_history, up_to=best),
        architecture=type(model).__name__ if model is not None else None,
        task=task,
        best_step=best,
        farms_lr=FarmsLRRecord.from_history(read_history(folder / HISTORY_NAME), farms_lr) if farms_lr else None,
        layerwise_lr=layerwise_lr,
        s2ft=s2ft_record(*s2ft) if s2ft else None,
    )
    if earlier is not None:
        # S2FT adds parameters for its slices: only the count of its own callback excludes them.
        counted = earlier if earlier.s2ft is not None and report.s2ft is None else report
        report = replace(
            report,
            farms_lr=report.farms_lr or earlier.farms_lr,
            layerwise_lr=report.layerwise_lr or earlier.layerwise_lr,
            s2ft=report.s2ft or earlier.s2ft,
            num_parameters=counted.num_parameters,
            num_trained=counted.num_trained,
        )
    folder.mkdir(parents=True, exist_ok=True)
    report.save(path)
    return path


def _report_of_step(path: Path, step: int) -> TrainReport | None:
    """Return the report that the other callback wrote for this training, at the same step."""
    try:
        report = TrainReport.load(path)
    except DataError:
        return None
    return report if report.steps == step else None


def _json_value(value: Any) -> str | int | float | bool | None:
    """Convert a training argument to a JSON value."""
    value = getattr(value, "value", value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN and infinity
    return value if isinstance(value, str | int | float | bool | None) else str(value)
