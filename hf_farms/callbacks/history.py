"""What a callback measured while training: for the log, the trackers, a file, and a figure at the end."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_farms.callbacks.groups import mean_factor
from hf_farms.config import FarmsLRConfig
from hf_farms.errors import DataError, HfFarmsWarning
from hf_farms.reports import SpectralReport

__all__ = ["History", "read_history", "recording", "track"]

FILE = "farms_lr.jsonl"
# Who draws it: the library does not know the package of cards, it asks what is installed.
DRAWERS = "hf_farms.training_history"


class History:
    """The measurements of one run; a line each in `output_dir/farms_lr.jsonl`.

    Args:
        args: of the Trainer.
        state: of the Trainer; entries go to its log history.
        memory: of the callback; what the file holds beyond its step is dropped when a checkpoint is resumed.
    """

    def __init__(self, args: TrainingArguments, state: TrainerState, memory: dict[str, Any]) -> None:
        self._args, self._state = args, state
        self._path = Path(args.output_dir or ".") / FILE
        self._writes = state.is_world_process_zero
        if self._writes and self._path.exists():
            last = memory["step"]
            lines = [line for line in read_history(self._path) if last is not None and line["step"] <= last]
            self._path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def add(self, report: SpectralReport, factors: dict[str, float], seconds: float, *, model: Any) -> None:
        """Write down one measurement."""
        blocks: list[dict[str, Any]] = [
            {
                "name": block.name,
                "alpha": block.alpha,
                "alpha_stderr": block.alpha_stderr,
                "factor": mean_factor(factors, (layer.name for layer in block.layers)),
            }
            for block in report.blocks
        ]
        layers = {
            layer.name: {"alpha": layer.alpha, "factor": factors.get(layer.name, 1.0)}
            for layer in [*(layer for block in report.blocks for layer in block.layers), *report.outside]
        }
        step, epoch = self._state.global_step, self._state.epoch
        logs: dict[str, float] = {
            f"farms_lr/{block['name']}/{what}": block[what]
            for block in blocks
            for what in ("alpha", "alpha_stderr", "factor")
            if block[what] is not None
        }
        logs |= {"farms_lr/seconds": seconds}
        self._state.log_history.append({**logs, "epoch": epoch, "step": step})
        track(self._args, self._state, logs, model)
        if self._writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = {"step": step, "epoch": epoch, "seconds": seconds, "blocks": blocks, "layers": layers}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def add_cost(self, seconds: float, total: float, *, model: Any) -> None:
        """Log the time of all measurements and its share, before the Trainer's summary, which stays the last entry."""
        logs = {"farms_lr/seconds_in_all": seconds, "farms_lr/share_of_time": seconds / total if total else 0.0}
        self._state.log_history.insert(len(self._state.log_history) - 1, {**logs, "step": self._state.global_step})
        track(self._args, self._state, logs, model)

    def draw(self, config: FarmsLRConfig) -> None:
        """Have the figure and the section of the card written."""
        if self._writes and self._path.exists():
            for drawer in entry_points(group=DRAWERS):
                drawer.load()(read_history(self._path), config, self._path.parent)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history file; a last one that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


@contextmanager
def recording() -> Iterator[None]:
    """What only describes a training must not end it: a full disk or a broken file is a warning."""
    try:
        yield
    except (OSError, ValueError, DataError) as error:
        warnings.warn(f"What was trained could not be recorded for the card: {error}", HfFarmsWarning, stacklevel=3)


def track(args: TrainingArguments, state: TrainerState, logs: dict[str, float], model: Any) -> None:
    """Hand the numbers to the trackers of this run (TensorBoard, trackio, wandb), and to nobody who prints.

    A callback is not given the others. The handler that calls it is found on the stack: logging through the Trainer
    would put these numbers between its own on the console.
    """
    frame = sys._getframe(1)
    while frame is not None:
        handler: Any = frame.f_locals.get("self")
        if hasattr(handler, "callbacks") and hasattr(handler, "call_event"):
            for callback in handler.callbacks:
                tracks = type(callback).__module__.startswith("transformers.integrations")
                if tracks and not isinstance(callback, ProgressCallback | PrinterCallback):
                    # Trackers take a control and do not change it: any will do.
                    callback.on_log(args, state, TrainerControl(), logs=dict(logs), model=model)
            return
        frame = frame.f_back  # type: ignore[assignment]
