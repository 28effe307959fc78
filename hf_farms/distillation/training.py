"""Train the kept weights in an unmodified Trainer, from its last complete checkpoint on."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from hf_farms.callbacks.keep_zeros import KeepZerosCallback
from hf_farms.callbacks.slices import load_slices, save_slices_with_optimizer
from hf_farms.callbacks.trainer import print_nothing, unwrap_optimizer
from hf_farms.distillation.student import SequenceNumbers, Student
from hf_farms.errors import NoEffectWarning
from hf_farms.pruning.kept_weights import root_mean_square
from hf_farms.s2ft.surgery import selection_of

__all__ = ["TrainingSettings", "train"]

# A killed run repeats at most this share of the training.
SAVED_SHARE = 0.1
# Gradients of a mean over tokens may be far below the default of Adam, 1e-8.
EPSILON = 1e-15
# Devices on which Adam updates a matrix in one pass over memory.
FUSED = frozenset({"cpu", "cuda"})
# Share of the steps in which the learning rate rises.
WARM_UP = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the student is trained.

    Attributes:
        passes: over the fitted sequences.
        rate: largest learning rate, as a fraction of the root mean square of each matrix.
        bfloat16: products are in bfloat16, as the model itself computes them; weights and moments are float32.
        folder: for checkpoints; None writes none.
    """

    passes: int
    rate: float
    bfloat16: bool = False
    folder: Path | None = None


def train(
    student: Student,
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    numbers: Sequence[int],
    settings: TrainingSettings,
    *,
    tick: Callable[[int, int, float], None],
) -> int:
    """Train the weights in place, and return the number of steps. The checkpoints stay in the folder.

    Args:
        student: the blocks of the model.
        model: the whole model.
        weights: or slices of S2FT; float32, with zeros that stay.
        numbers: sequences to fit, one in each step.
        settings: of the training.
        tick: called with steps done, all steps, and the loss of the last one.
    """
    steps = len(numbers) * settings.passes
    device = next(iter(weights.values())).device
    optimizer = torch.optim.Adam(
        [{"params": [weight], "lr": settings.rate * root_mean_square(weight)} for weight in weights.values()],
        eps=EPSILON,
        fused=device.type in FUSED,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps))
    # The Trainer takes the current GPU.
    where = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    keep_zeros = _KeepZeros(model)
    # The slices of a checkpoint are loaded before their zeros are found.
    slices = [_KeepSlices(model)] if selection_of(model) is not None else []
    # After an error too: the hooks of the zeros stand on the weights of the caller.
    with _random_state(), where, _output_folder(settings.folder) as folder, closing(keep_zeros):
        trainer = Trainer(
            model=student,
            args=_arguments(folder, settings, steps, device),
            train_dataset=SequenceNumbers(numbers),
            compute_loss_func=student.loss,
            optimizers=(optimizer, schedule),
            callbacks=[*slices, keep_zeros, _Progress(student, tick)],
        )
        print_nothing(trainer)
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
        return int(trainer.state.global_step)


def _factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate: it rises, and falls to zero along a cosine."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def _arguments(folder: Path, settings: TrainingSettings, steps: int, device: torch.device) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.passes,
        per_device_train_batch_size=1,
        max_grad_norm=0.0,
        save_strategy="no" if settings.folder is None else "steps",
        save_steps=max(1, math.ceil(SAVED_SHARE * steps)),
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
        bf16=settings.bfloat16,
        seed=0,
    )
    # Not a copy of the student on each GPU of the machine.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last complete checkpoint, and remove those that a kill left incomplete."""
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        # The Trainer writes this file last.
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            complete[int(state["global_step"])] = path
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(path, ignore_errors=True)
    return str(complete[max(complete)]) if complete else None


@contextmanager
def _output_folder(folder: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as name:
        yield Path(name)


@contextmanager
def _random_state() -> Iterator[None]:
    """Restore the state of all random generators at the end: a Trainer seeds them."""
    import random

    import numpy as np

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class _KeepZeros(KeepZerosCallback):
    """Find the zeros in the whole model: the student alone has neither config nor names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def close(self) -> None:
        """Remove the hooks; nothing happens after a training that came to its end."""
        self._release()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with warnings.catch_warnings():
            # Without any zeros, at sparsity 0, the caller has warned.
            warnings.simplefilter("ignore", NoEffectWarning)
            super().on_train_begin(args, state, control, **{**kwargs, "model": self._model})


class _KeepSlices(TrainerCallback):
    """Write the float32 slices of S2FT to the checkpoints, and load them: the blocks hold rounded weights only."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = unwrap_optimizer(kwargs["optimizer"])
        save_slices_with_optimizer(optimizer, self._model, None)
        load_slices(optimizer, self._model)


class _Progress(TrainerCallback):
    """Report each step with its loss."""

    def __init__(self, student: Student, tick: Callable[[int, int, float], None]) -> None:
        self._student, self._tick = student, tick

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._tick(state.global_step, state.max_steps, self._student.last_loss)
