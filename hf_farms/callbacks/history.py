"""What a callback measured while training: for the log, the trackers, a file, and a figure at the end."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_farms.callbacks.groups import mean_factor
from hf_farms.config import FarmsLRConfig
from hf_farms.errors import HfFarmsError, HfFarmsWarning
from hf_farms.files.atomic_writes import write_text
from hf_farms.files.path_checks import check_within
from hf_farms.reports import REPORT_NAME, SpectralReport

__all__ = ["History", "read_history", "recording", "run_folder", "said", "track"]

FILE = "farms_lr.jsonl"
# Who draws it: the library does not know the package of cards, it asks what is installed.
DRAWERS = "hf_farms.training_history"
# Layers that trackers are given numbers of: a model of thousands of experts would fill them.
MOST_LOGGED = 2000


class History:
    """The measurements of one run; a line each in `farms_lr.jsonl` in its folder.

    A history that another run has left in the folder is kept under another name.

    Args:
        args: of the Trainer.
        state: of the Trainer; entries go to its log history.
        memory: of the callback; what the file holds beyond its step is dropped when a checkpoint is resumed.
        config: of the callback; with unit "layer" the log has entries for every layer.
        replace: what is in the folder is of the same run, which begins again.

    Attributes:
        folder: where it is written: `output_dir`, in a search of hyper-parameters the trial's own folder in it.
    """

    def __init__(
        self,
        args: TrainingArguments,
        state: TrainerState,
        memory: dict[str, Any],
        config: FarmsLRConfig,
        *,
        replace: bool = False,
    ) -> None:
        self._args, self._state, self._config = args, state, config
        self.folder = run_folder(args, state)
        self._path = self.folder / FILE
        self._writes = state.is_world_process_zero
        self._told = False
        if self._writes:
            check_within(self.folder, (FILE, REPORT_NAME), argument="output_dir")
            with recording():
                self._take_up(memory["step"], replace=replace)

    def _take_up(self, last: int | None, *, replace: bool) -> None:
        """Go on with the lines up to that step; without one the file is of another run."""
        if not self._path.exists():
            return
        if last is None and not replace:
            self._path.rename(_free_name(self._path))
            return
        last = -1 if last is None else last
        lines = [line for line in read_history(self._path) if line["step"] <= last]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))

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
        layers = [
            {
                "name": layer.name,
                "alpha": layer.alpha,
                "alpha_stderr": layer.alpha_stderr,
                "factor": factors.get(layer.name, 1.0),
            }
            for layer in [*(layer for block in report.blocks for layer in block.layers), *report.outside]
        ]
        step, epoch = self._state.global_step, self._state.epoch
        logs: dict[str, float] = {
            f"farms_lr/{entry['name']}/{what}": entry[what]
            for entry in [*blocks, *self._logged(layers)]
            for what in ("alpha", "alpha_stderr", "factor")
            if entry[what] is not None
        }
        logs |= {"farms_lr/seconds": seconds}
        self._state.log_history.append({**logs, "epoch": epoch, "step": step})
        track(self._args, self._state, logs, model)
        if self._writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            by_name = {layer.pop("name"): layer for layer in layers}
            line = {"step": step, "epoch": epoch, "seconds": seconds, "blocks": blocks, "layers": by_name}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _logged(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The layers that the log has entries for."""
        if self._config.unit != "layer":
            return []
        if len(layers) <= MOST_LOGGED:
            return layers
        if not self._told:
            self._told = True
            warnings.warn(
                f"The log has the mean factor of each block: {len(layers)} layers are too many for trackers. "
                f"{self._path.name} has those of all layers.",
                HfFarmsWarning,
                stacklevel=4,
            )
        return []

    def add_cost(self, seconds: float, total: float, *, model: Any) -> None:
        """Log the time of all measurements and its share, before the Trainer's summary, which stays the last entry."""
        logs = {"farms_lr/seconds_in_all": seconds, "farms_lr/share_of_time": seconds / total if total else 0.0}
        self._state.log_history.insert(len(self._state.log_history) - 1, {**logs, "step": self._state.global_step})
        track(self._args, self._state, logs, model)

    def draw(self) -> None:
        """Have the figure and the section of the card written."""
        if self._writes and self._path.exists():
            for drawer in entry_points(group=DRAWERS):
                drawer.load()(read_history(self._path), self._config, self.folder)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history file; a last one that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            break
        found.append(entry)
    return found


def run_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the Trainer that calls keeps its checkpoints: `output_dir`, or the folder of the trial in it.

    A trial's folder is named by the search (`run-0`, or by `hp_name`), and only the Trainer knows it. Its callbacks are
    not given the Trainer: it is found on the stack.
    """
    if getattr(state, "is_hyper_param_search", False):
        for trainer in _callers("_get_output_dir"):
            with suppress(Exception):  # without the library of the search, or on a process that has no trial
                return Path(trainer._get_output_dir(trainer._trial))
    return Path(args.output_dir or ".")


def _free_name(path: Path) -> Path:
    """`farms_lr-1.jsonl`, `farms_lr-2.jsonl` ...: the first that is free."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())


def _callers(*attributes: str) -> Iterator[Any]:
    """The objects whose methods are running, the nearest first, that have these attributes."""
    frame = sys._getframe(1)
    while frame is not None:
        caller: Any = frame.f_locals.get("self")
        if all(hasattr(caller, attribute) for attribute in attributes):
            yield caller
        frame = frame.f_back  # type: ignore[assignment]


@contextmanager
def recording() -> Iterator[None]:
    """What only describes a training must not end it: a full disk, a broken file or a tracker is a warning."""
    try:
        yield
    except Exception as error:  # trackers and figures are code of others
        message = f"What was trained could not be recorded for the card: {said(error)}"
        warnings.warn(message, HfFarmsWarning, stacklevel=3)


def track(args: TrainingArguments, state: TrainerState, logs: dict[str, float], model: Any) -> None:
    """Hand the numbers to the trackers of this run (TensorBoard, trackio, wandb), and to nobody who prints.

    A callback is not given the others. The handler that calls it is found on the stack: logging through the Trainer
    would put these numbers between its own on the console.
    """
    handler = next(_callers("callbacks", "call_event"), None)
    for callback in handler.callbacks if handler is not None else ():
        tracks = type(callback).__module__.startswith("transformers.integrations")
        if tracks and not isinstance(callback, ProgressCallback | PrinterCallback):
            # Trackers take a control and do not change it: any will do.
            callback.on_log(args, state, TrainerControl(), logs=dict(logs), model=model)


def said(error: Exception) -> str:
    """An error of ours as it is; of another one its kind too."""
    return str(error) if isinstance(error, HfFarmsError) else f"{type(error).__name__}: {error}"
