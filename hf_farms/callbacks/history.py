"""Measurements of a training: in the log, the trackers and a file, and as a figure at the end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerState, TrainingArguments

from hf_farms.callbacks import rates
from hf_farms.callbacks.groups import mean_factor
from hf_farms.callbacks.trainer import insert_before_last, log_image_to_trackers, log_to_trackers, run_folder
from hf_farms.config import FarmsLRConfig
from hf_farms.errors import HfFarmsError, HfFarmsWarning
from hf_farms.files.atomic_writes import write_text
from hf_farms.files.path_checks import check_within
from hf_farms.reports import REPORT_NAME, SpectralReport
from hf_farms.reports.lr_history import HISTORY_NAME, BlockFactor, LayerFactor, LRHistoryEntry, read_history
from hf_farms.reports.training import FarmsLRRecord

__all__ = ["History", "error_text", "warn_on_failure"]

# Most figures that trackers get during a training, beside the last one.
MOST_FIGURES = 10


class History:
    """The measurements of one run, and its file `farms_lr.jsonl`.

    A file that another run has left in the folder is renamed.

    Args:
        args: of the Trainer.
        state: of the Trainer; entries are added to its log history.
        last_step: last measurement of the checkpoint being resumed, later ones are removed from the file; None for a
            fresh run.
        config: of the callback; with unit "layer" the log has entries for every layer.
        replace: the file in the folder belongs to the same run, which starts again.

    Attributes:
        folder: of the file: `output_dir`, in a hyperparameter search the folder of the trial in it.
        entries: all measurements in order; earlier ones than the last are kept without their layers.
    """

    def __init__(
        self,
        args: TrainingArguments,
        state: TrainerState,
        last_step: int | None,
        config: FarmsLRConfig,
        *,
        replace: bool = False,
    ) -> None:
        self._args, self._state, self._config = args, state, config
        self.folder = run_folder(args, state)
        self.entries: list[LRHistoryEntry] = []
        self._path = self.folder / HISTORY_NAME
        self._writes = state.is_world_process_zero
        # Step of the last figure that trackers got, and the time of all of them.
        self._drawn: int | None = None
        self._drawing = 0.0
        self._warned = False
        if self._writes:
            check_within(self.folder, (HISTORY_NAME, REPORT_NAME), argument="output_dir")
            with warn_on_failure():
                self._resume(last_step, replace=replace)

    def _resume(self, last_step: int | None, *, replace: bool) -> None:
        """Keep the entries up to that step; without one the file belongs to another run."""
        if not self._path.exists():
            return
        if last_step is None and not replace:
            self._path.rename(_free_name(self._path))
            return
        entries = read_history(self._path, up_to=-1 if last_step is None else last_step, strict=False)
        write_text(self._path, "".join(f"{entry.to_line()}\n" for entry in entries))
        for entry in entries:
            self._append(entry)

    def _append(self, entry: LRHistoryEntry) -> None:
        # A model may have thousands of layers; the figure and the card need those of the last measurement only.
        self.entries[-1:] = [replace(earlier, layers=()) for earlier in self.entries[-1:]]
        self.entries.append(entry)

    def add(self, report: SpectralReport, factors: dict[str, float], seconds: float, *, model: Any) -> None:
        """Log one measurement and write it to the file."""
        blocks = tuple(
            BlockFactor(
                name=block.name,
                alpha=block.alpha,
                alpha_stderr=block.alpha_stderr,
                factor=mean_factor(factors, (layer.name for layer in block.layers)),
            )
            for block in report.blocks
        )
        layers = tuple(
            LayerFactor(
                name=layer.name,
                alpha=layer.alpha,
                alpha_stderr=layer.alpha_stderr,
                factor=factors.get(layer.name, 1.0),
            )
            for layer in [*(layer for block in report.blocks for layer in block.layers), *report.outside]
        )
        step, epoch = self._state.global_step, self._state.epoch
        entry = LRHistoryEntry(step=step, epoch=epoch, seconds=seconds, blocks=blocks, layers=layers)
        self._append(entry)
        rows: list[BlockFactor | LayerFactor] = [*blocks, *self._logged(layers)]
        logs: dict[str, float] = {
            f"farms_lr/{row.name}/{name}": number
            for row in rows
            for name in ("alpha", "alpha_stderr", "factor")
            if (number := getattr(row, name)) is not None
        }
        logs |= {"farms_lr/seconds": seconds}
        self._state.log_history.append({**logs, "epoch": epoch, "step": step})
        log_to_trackers(self._args, self._state, logs, model)
        if self._writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{entry.to_line()}\n")

    def _logged(self, layers: tuple[LayerFactor, ...]) -> tuple[LayerFactor, ...]:
        """Return the layers that get entries in the log."""
        if self._config.unit != "layer":
            return ()
        if len(layers) <= rates.MOST_LOGGED:
            return layers
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"The log has the mean factor of each block only: {len(layers)} layers are too many for trackers. "
                f"{self._path.name} has the factors of all layers.",
                HfFarmsWarning,
                stacklevel=4,
            )
        return ()

    def add_cost(self, seconds: float, total: float, *, model: Any) -> None:
        """Log the time of all measurements, with the figures for trackers, and its share of the training."""
        seconds += self._drawing
        logs = {"farms_lr/seconds_in_all": seconds, "farms_lr/share_of_time": seconds / total if total else 0.0}
        insert_before_last(self._state, logs)
        log_to_trackers(self._args, self._state, logs, model)

    def add_interval(self, first_step: int, interval: int, share: float | None, *, model: Any) -> None:
        """Log and print the interval that was decided for "auto".

        Args:
            first_step: of the first measurement.
            interval: steps between two.
            share: estimated share of one measurement in the time of the training; None: unknown.
            model: that is trained.
        """
        count = max(1, -(-(self._state.max_steps - first_step) // interval))
        logs: dict[str, float] = {"farms_lr/interval": interval}
        estimate = "the cost of a step is unknown"
        if share is not None:
            logs["farms_lr/estimated_share"] = count * share
            estimate = f"estimated {count * share:.2%} of the training"
        self._state.log_history.append({**logs, "step": self._state.global_step})
        log_to_trackers(self._args, self._state, logs, model)
        often = f"every {interval} steps, {count} times" if count > 1 else f"once, at step {first_step}"
        if self._writes:
            # Loggers of libraries are silent unless told otherwise.
            print(f"FarmsLRCallback measures {often}: {estimate}.")  # noqa: T201

    def send_figure(self, *, last: bool = False) -> None:
        """Send alphas over steps and blocks as a figure to TensorBoard and W&B, where they are on.

        Args:
            last: the training is over; else the figure is left out if the one before is younger than a tenth of it.
        """
        if not self.entries or self._drawn == (step := self.entries[-1].step):
            return
        if self._drawn is None or last or (step - self._drawn) * MOST_FIGURES >= self._state.max_steps:
            self._drawn = step
            log_image_to_trackers(self._state, "farms_lr/alphas", self._image)

    def _image(self) -> Any:
        # Not at the top: both are needed with trackers of figures only.
        from hf_farms_cards.figures.training import draw_training
        from PIL import Image

        start = time.perf_counter()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "alphas.png"
            draw_training(FarmsLRRecord.from_history(self.entries, self._config), path)
            with Image.open(path) as file:
                image = file.convert("RGB")
        self._drawing += time.perf_counter() - start
        return image

    def draw(self) -> None:
        """Write the figure, and the section for the model card."""
        if self._writes and self.entries:
            # Not at the top: matplotlib is needed at the end of a training only.
            from hf_farms_cards.figures import training

            training.write_training_history(self.entries, self._config, self.folder)


def _free_name(path: Path) -> Path:
    """Return the first of `farms_lr-1.jsonl`, `farms_lr-2.jsonl` ... that does not exist."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())


@contextmanager
def warn_on_failure() -> Iterator[None]:
    """Turn errors into a warning: a full disk, a broken file or a tracker must not end a training."""
    try:
        yield
    except Exception as error:  # trackers and figures are code of others
        message = f"The training could not be recorded for the card: {error_text(error)}"
        warnings.warn(message, HfFarmsWarning, stacklevel=3)


def error_text(error: Exception) -> str:
    """Return the message of an error, with its class unless it is one of hf-farms."""
    return str(error) if isinstance(error, HfFarmsError) else f"{type(error).__name__}: {error}"
