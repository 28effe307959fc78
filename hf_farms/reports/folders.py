"""A folder -> the report of what lies in it; for a training also from the files that the callbacks leave behind."""

from __future__ import annotations

import filecmp
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_farms.config import FarmsLRConfig, S2FTConfig
from hf_farms.errors import DataError
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import Document, DocumentError, load_json, read_text
from hf_farms.reports.base import REPORT_NAME
from hf_farms.reports.lr_history import HISTORY_NAME, read_history
from hf_farms.reports.metrics import best_step, last_logged, number, trained_metrics
from hf_farms.reports.pruning import PruneReport
from hf_farms.reports.training import (
    FarmsLRRecord,
    LayerSelection,
    S2FTRecord,
    TrainReport,
)

__all__ = ["kind_of", "load_report", "record_training", "training_report"]

STATE, CONFIG = "trainer_state.json", "config.json"
S2FT_CONFIG, S2FT_CHANNELS = "s2ft_config.json", "s2ft_adapter.safetensors"
CHECKPOINT = "checkpoint-"
# What decides the result of a training, by the names of transformers' arguments.
ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "bf16", "fp16", "seed"),
)


def load_report(folder: str | Path) -> PruneReport | TrainReport:
    """The report in a folder; of a training without one, what its files say.

    Raises:
        DataError: no such folder, neither a report nor files of a training, or a report of another kind or schema.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # pathlib raises for a name that is too long
        raise DataError(f"folder must be an existing one, got {str(folder)!r}. Check the path.")
    path = folder / REPORT_NAME
    if path.is_file():  # a pipe of that name would be waited for
        return (TrainReport if kind_of(path) == "training" else PruneReport).load(path)
    report = training_report(folder)
    if report is None:
        raise DataError(
            f"folder must hold {REPORT_NAME}, got {str(folder)!r} without one.",
            hint="Name the folder that `hf-farms prune` or a training with one of the callbacks wrote.",
        )
    return report


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
    s2ft: tuple[S2FTConfig, Mapping[str, Iterable[int]]] | None = None,
) -> Path | None:
    """Write the report of a training that has just ended into its output folder, for the card.

    What the other callback has written of the same training stays. A report of something else is left alone.

    Args:
        args: of the training; `output_dir` and what is named in `ARGUMENTS` are read.
        state: of the training; step, epoch and log history are read.
        model: what was trained; its config is read.
        folder: where to write it; None: `output_dir`.
        task: of the model, by the Hub's name.
        num_parameters: of the model, without what S2FT adds to it.
        num_trained: those that learnt.
        farms_lr: options of the layer-wise learning rates.
        s2ft: options of the selective training, and the channels of each layer.

    Returns:
        The file; None where this process does not write, or the folder holds a report of something else.
    """
    folder = folder or Path(args.output_dir or ".")
    path = folder / REPORT_NAME
    if not state.is_world_process_zero:
        return None
    there = _same_training(path, int(state.global_step))
    if path.is_file() and there is None and kind_of(path) != "training":
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
        arguments={name: _plain(getattr(args, name)) for name in ARGUMENTS if hasattr(args, name)},
        metrics=trained_metrics(state.log_history, up_to=best),
        architecture=type(model).__name__ if model is not None else None,
        task=task,
        best_step=best,
        farms_lr=FarmsLRRecord.from_history(read_history(folder / HISTORY_NAME), farms_lr) if farms_lr else None,
        s2ft=_s2ft(*s2ft) if s2ft else None,
    )
    if there is not None:
        # The slices that S2FT adds are parameters too: only its own count leaves them out.
        counted = there if there.s2ft is not None and report.s2ft is None else report
        report = replace(
            report,
            farms_lr=report.farms_lr or there.farms_lr,
            s2ft=report.s2ft or there.s2ft,
            num_parameters=counted.num_parameters,
            num_trained=counted.num_trained,
        )
    folder.mkdir(parents=True, exist_ok=True)
    report.save(path)
    return path


def training_report(folder: str | Path) -> TrainReport | None:
    """What the files of a training say: history, state and selection, in the folder or in its newest checkpoint.

    Returns:
        None where neither callback has left anything.

    Raises:
        DataError: a file that is not as the callbacks write it.
    """
    folder = Path(folder)
    places = [folder, *_checkpoints(folder)]
    state, config, s2ft = (_first(places, name) for name in (STATE, CONFIG, S2FT_CONFIG))
    history = (folder.parent if folder.name.startswith(CHECKPOINT) else folder) / HISTORY_NAME
    log = list(state.get("log_history", ()))
    try:
        entries = read_history(history, up_to=state.get("global_step"))
        if not entries and not s2ft:
            return None
        best = _saved_best(folder, state)
        trained = last_logged(log, "s2ft/trainable_parameters")
        share = last_logged(log, "s2ft/trainable_share")
        selection = parse_dataclass(Document(s2ft["selection"]), S2FTConfig) if s2ft else None
        return TrainReport(
            model=s2ft.get("base_model") or config.get("_name_or_path") or None,
            model_type=str(config.get("model_type", "unknown")),
            num_parameters=round(trained / share) if trained and share else _stored_parameters(folder),
            num_trained=int(trained) if trained else None,
            steps=int(state.get("global_step", entries[-1].step if entries else 0)),
            epochs=number(state.get("epoch")),
            metrics=trained_metrics(log, up_to=best),
            best_step=best,
            farms_lr=FarmsLRRecord.from_history(entries, _lr_config(state)) if entries else None,
            s2ft=_s2ft(selection, _channels(places)) if selection else None,
        )
    except DataError:
        raise
    except Exception as error:  # whatever a foreign file makes these stumble over
        raise DataError(
            f"{str(folder)!r} must hold the files of a training as the callbacks write them, got {error!r}."
        ) from error


def kind_of(path: Path) -> str | None:
    """The kind that a report names; None: that of a pruned model names none, and a damaged one cannot."""
    try:
        data = load_json(read_text(path)).data
    except (OSError, DocumentError):
        return None
    return str(data["kind"]) if isinstance(data, dict) and "kind" in data else None


def _same_training(path: Path, step: int) -> TrainReport | None:
    """What the other callback wrote a moment ago."""
    try:
        report = TrainReport.load(path)
    except DataError:
        return None
    return report if report.steps == step else None


def _s2ft(config: S2FTConfig, channels: Mapping[str, Iterable[int]]) -> S2FTRecord:
    layers = (LayerSelection(name=name, num_selected=len(tuple(found))) for name, found in channels.items())
    return S2FTRecord(config=config, layers=tuple(layers))


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints inside, the newest first."""
    found = [path for path in folder.glob(f"{CHECKPOINT}*") if path.name.removeprefix(CHECKPOINT).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(CHECKPOINT)), reverse=True)


def _first(places: Iterable[Path], name: str) -> dict[str, Any]:
    """The first JSON object of that name; empty where there is none."""
    for place in places:
        if (place / name).is_file():
            try:
                # A training that diverged has NaN for its loss there.
                found = load_json(read_text(place / name), allow_nan=True).data
            except DocumentError as error:
                raise DataError(f"{str(place / name)!r} must be JSON, got another text ({error}).") from error
            if isinstance(found, dict):
                return found
    return {}


def _saved_best(folder: Path, state: Mapping[str, Any]) -> int | None:
    """The step of the best model, if it is the one whose weights lie in this folder: its settings are not there."""
    step = best_step(SimpleNamespace(**state))
    checkpoint = folder / f"{CHECKPOINT}{step}"
    saved = sorted(path.name for path in folder.glob("*model*.safetensors"))
    if step is None or not saved or not checkpoint.is_dir():
        return None
    same, _, _ = filecmp.cmpfiles(folder, checkpoint, saved, shallow=False)
    return step if sorted(same) == saved else None


def _lr_config(state: Mapping[str, Any]) -> FarmsLRConfig | None:
    saved = state.get("stateful_callbacks", {}).get("FarmsLRCallback")
    return parse_dataclass(Document(saved["args"]["config"]), FarmsLRConfig) if saved else None


def _channels(places: Iterable[Path]) -> dict[str, range]:
    """For each layer as many channels as were selected."""
    from safetensors import safe_open

    path = next((place / S2FT_CHANNELS for place in places if (place / S2FT_CHANNELS).is_file()), None)
    if path is None:
        return {}
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if name.endswith(".index")]  # noqa: SIM118 - no mapping
        return {name.removesuffix(".index"): range(file.get_slice(name).get_shape()[0]) for name in names}


def _stored_parameters(folder: Path) -> int | None:
    """Parameters of a whole model in this folder; None where there is none."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total or None


def _plain(value: Any) -> str | int | float | bool | None:
    value = getattr(value, "value", value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no number for it
    return value if isinstance(value, str | int | float | bool | None) else str(value)
