"""Load the report of a folder; for a training without one, build it from the files of Trainer and callbacks."""

from __future__ import annotations

import filecmp
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_farms.config import FarmsLRConfig, S2FTConfig
from hf_farms.errors import DataError
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import Document, DocumentError, load_json, read_text
from hf_farms.files.names import MODEL_CONFIG, SELECTED_CHANNELS, SELECTION
from hf_farms.reports.base import REPORT_NAME, json_converter
from hf_farms.reports.lr_history import HISTORY_NAME, read_history
from hf_farms.reports.metrics import best_step, last_logged, number, trained_metrics
from hf_farms.reports.pruning import PruneReport
from hf_farms.reports.training import (
    FarmsLRRecord,
    LayerSelection,
    S2FTRecord,
    TrainReport,
)

__all__ = ["load_report", "report_kind", "s2ft_record", "training_report"]

STATE = "trainer_state.json"
CHECKPOINT = "checkpoint-"


def load_report(folder: str | Path) -> PruneReport | TrainReport:
    """Load the report in a folder; for a training without one, build it from its files.

    Args:
        folder: output folder of `hf-farms prune`, or of a training with one of the callbacks.

    Raises:
        DataError: missing folder, neither a report nor files of a training, or a report of another kind or schema.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # pathlib raises for names that are too long
        raise DataError(f"folder must exist, got {str(folder)!r}. Check the path.")
    path = folder / REPORT_NAME
    if path.is_file():  # reading a named pipe would block
        return (TrainReport if report_kind(path) == "training" else PruneReport).load(path)
    report = training_report(folder)
    if report is None:
        raise DataError(
            f"folder must hold {REPORT_NAME}, got {str(folder)!r} without one.",
            hint="Pass the output folder of `prune_checkpoint`, or of a training with one of the callbacks.",
        )
    return report


def training_report(folder: str | Path) -> TrainReport | None:
    """Build the report of a training from its history, state and selection, in the folder or its newest checkpoint.

    Returns:
        The report; None if neither callback wrote files.

    Raises:
        DataError: a file does not have the format of the callbacks.
    """
    folder = Path(folder)
    folders = [folder, *_checkpoints(folder)]
    state, config, s2ft = (_read_first(folders, name) for name in (STATE, MODEL_CONFIG, SELECTION))
    history = (folder.parent if folder.name.startswith(CHECKPOINT) else folder) / HISTORY_NAME
    try:
        log = list(state.get("log_history", ()))
        entries = read_history(history, up_to=state.get("global_step"))
        # An adapter that was made by comparing two models has none.
        selected = s2ft.get("selection")
        if not entries and not selected:
            return None
        best = _best_step_of_weights(folder, state)
        trained = last_logged(log, "s2ft/trainable_parameters")
        share = last_logged(log, "s2ft/trainable_share")
        selection = parse_dataclass(Document(selected), S2FTConfig) if selected else None
        report = TrainReport(
            model=s2ft.get("base_model") or config.get("_name_or_path") or None,
            model_type=str(config.get("model_type", "unknown")),
            num_parameters=round(trained / share) if trained and share else _stored_parameters(folder),
            num_trained=int(trained) if trained else None,
            steps=int(state.get("global_step", entries[-1].step if entries else 0)),
            epochs=number(state.get("epoch")),
            metrics=trained_metrics(log, up_to=best),
            best_step=best,
            farms_lr=FarmsLRRecord.from_history(entries, _lr_config(state)) if entries else None,
            s2ft=s2ft_record(selection, _channels(folders)) if selection else None,
        )
        return _checked(report)
    except DataError:
        raise
    except Exception as error:  # files of other programs raise many types
        raise DataError(f"{str(folder)!r} must contain files in the format of the callbacks, got {error!r}.") from error


def report_kind(path: Path) -> str | None:
    """Return the `kind` field of a report file; None without one (reports of pruned models) or for a damaged file."""
    try:
        data = load_json(read_text(path)).data
    except (OSError, DocumentError):
        return None
    return str(data["kind"]) if isinstance(data, dict) and "kind" in data else None


def s2ft_record(config: S2FTConfig, channels: Mapping[str, Iterable[int]]) -> S2FTRecord:
    """Build the record of a selection from the selected channels of each layer."""
    layers = (LayerSelection(name=name, num_selected=len(tuple(ids))) for name, ids in channels.items())
    return S2FTRecord(config=config, layers=tuple(layers))


def _checked(report: TrainReport) -> TrainReport:
    """Return the report if its values have the types of its fields.

    Raises:
        ValueError: a value came from a file as another type, or is not finite.
    """
    text = json.dumps(json_converter().unstructure(report), allow_nan=False)
    return parse_dataclass(load_json(text), TrainReport)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders inside, newest first."""
    checkpoints = [path for path in folder.glob(f"{CHECKPOINT}*") if path.name.removeprefix(CHECKPOINT).isdecimal()]
    return sorted(checkpoints, key=lambda path: int(path.name.removeprefix(CHECKPOINT)), reverse=True)


def _read_first(folders: Iterable[Path], name: str) -> dict[str, Any]:
    """Read the first JSON object of this file name; empty if there is none."""
    for path in (folder / name for folder in folders):
        if path.is_file():
            try:
                # The loss of a diverged training is NaN.
                data = load_json(read_text(path), allow_nan=True).data
            except DocumentError as error:
                raise DataError(f"{str(path)!r} must be JSON, got another text ({error}).") from error
            if isinstance(data, dict):
                return data
    return {}


def _best_step_of_weights(folder: Path, state: Mapping[str, Any]) -> int | None:
    """Return the step of the best model if the weights in this folder are its weights, else None."""
    step = best_step(SimpleNamespace(**state))
    checkpoint = folder / f"{CHECKPOINT}{step}"
    saved = sorted(path.name for path in folder.glob("*model*.safetensors"))
    if step is None or not saved or not checkpoint.is_dir():
        return None
    equal, _, _ = filecmp.cmpfiles(folder, checkpoint, saved, shallow=False)
    return step if sorted(equal) == saved else None


def _lr_config(state: Mapping[str, Any]) -> FarmsLRConfig | None:
    saved = state.get("stateful_callbacks", {}).get("FarmsLRCallback")
    return parse_dataclass(Document(saved["args"]["config"]), FarmsLRConfig) if saved else None


def _channels(folders: Iterable[Path]) -> dict[str, range]:
    """Return, for each layer, a range as long as the number of selected channels."""
    from safetensors import safe_open

    path = next((path for folder in folders if (path := folder / SELECTED_CHANNELS).is_file()), None)
    if path is None:
        return {}
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        # An adapter has the channels of its layers beside the index of its weights; a selection has an index of layers.
        end = ".channels" if any(name.endswith(".channels") for name in names) else ".index"
        own = [name for name in names if name.endswith(end)]
        return {name.removesuffix(end): range(file.get_slice(name).get_shape()[0]) for name in own}


def _stored_parameters(folder: Path) -> int | None:
    """Count the parameters of a complete model in this folder; None if there is none."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total or None
