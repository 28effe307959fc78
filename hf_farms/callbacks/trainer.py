"""Internals of the transformers Trainer, and the marks that callbacks leave on its optimizer.

The only file that uses more of the Trainer than its public names (`TrainerCallback`, `TrainerControl`, `TrainerState`,
`TrainingArguments`), so that a new transformers release can break nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState
from numpy import asarray
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = [
    "FARMS_LR_MARK",
    "S2FT_MARK",
    "SLICES_MARK",
    "TRAINER_STATE_NAME",
    "ExportableState",
    "checkpoint_folder",
    "clear_mark",
    "deepspeed_config",
    "deepspeed_optimizer",
    "fsdp_version",
    "get_mark",
    "insert_before_last",
    "is_summary",
    "log_image_to_trackers",
    "log_to_trackers",
    "optimizer_name",
    "print_nothing",
    "recomputes_activations",
    "register_callback_state",
    "restart_farms_lr",
    "resuming_trainer",
    "retries_batch_sizes",
    "run_folder",
    "saved_callback_state",
    "set_mark",
    "trainer_flops",
    "trainer_of_optimizer",
    "unwrap_optimizer",
    "uses_deepspeed",
    "uses_fsdp",
    "uses_reentrant_checkpointing",
]

# Attributes of the optimizer: the callback that works on it, and the hooks that store the slices of S2FT in its state.
FARMS_LR_MARK, S2FT_MARK, SLICES_MARK = "_hf_farms_lr", "_hf_farms_s2ft", "_hf_farms_s2ft_slices"


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside the wrappers of accelerate, DeepSpeed and others."""
    while hasattr(inner := getattr(optimizer, "optimizer", None), "param_groups"):
        optimizer = inner
    return optimizer  # type: ignore[no-any-return]


def get_mark(optimizer: torch.optim.Optimizer, name: str) -> Any:
    """Return the value of a mark, or None."""
    return getattr(optimizer, name, None)


def set_mark(optimizer: torch.optim.Optimizer, name: str, value: Any) -> None:
    """Leave a mark on an optimizer; state dicts do not contain it."""
    setattr(optimizer, name, value)


def clear_mark(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Remove a mark if it is set."""
    vars(optimizer).pop(name, None)


def restart_farms_lr(args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
    """Start the FarmsLRCallback on this optimizer again, if there is one, after the parameters have been replaced.

    It has put the previous parameters into groups. Takes the arguments of `on_train_begin`.
    """
    callback = get_mark(unwrap_optimizer(kwargs["optimizer"]), FARMS_LR_MARK)
    if callback is not None:
        callback.on_train_begin(args, state, control, **kwargs)


def saved_callback_state(state: TrainerState, name: str) -> Any:
    """Return the state that a callback saved in the checkpoint being resumed.

    Returns:
        None for a fresh run, or a checkpoint without this callback; a list if the checkpoint has several of its class.
    """
    states: Any = state.stateful_callbacks
    return states.get(name) if state.global_step > 0 and isinstance(states, dict) else None


def register_callback_state(state: TrainerState, name: str, saved: dict[str, Any]) -> None:
    """Add a callback to those whose state is saved: the Trainer looks it up, also if the last checkpoint lacked it."""
    states: Any = state.stateful_callbacks
    if isinstance(states, dict):
        states.setdefault(name, saved)


def optimizer_name(args: TrainingArguments) -> str:
    """Return the value of `optim` as a string."""
    return str(getattr(args.optim, "value", args.optim))


def uses_deepspeed(args: TrainingArguments) -> bool:
    """Return whether DeepSpeed runs the training."""
    return bool(getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None))


def deepspeed_config(args: TrainingArguments) -> dict[str, Any]:
    """Return the config of DeepSpeed; empty without it."""
    settings: Any = getattr(getattr(args, "deepspeed_plugin", None), "hf_ds_config", None)
    settings = settings or getattr(args, "hf_deepspeed_config", None)
    return dict(settings.config) if settings is not None else {}


def deepspeed_optimizer(optimizer: Any) -> Any:
    """Return the optimizer of DeepSpeed among the wrappers of a torch optimizer; None without one."""
    while optimizer is not None:
        if type(optimizer).__module__.startswith("deepspeed.runtime."):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def trainer_of_optimizer() -> Trainer | None:
    """Return the Trainer that is creating its optimizer now, if one is."""
    return next(_callers("create_optimizer", "callback_handler"), None)


def resuming_trainer() -> tuple[Any, Path | None]:
    """Return the Trainer whose `train` is running, and the checkpoint that it resumes; None without them."""
    for frame in _frames():
        trainer, folder = frame.f_locals.get("self"), frame.f_locals.get("resume_from_checkpoint")
        if hasattr(trainer, "callback_handler") and "resume_from_checkpoint" in frame.f_locals:
            return trainer, Path(folder) if isinstance(folder, str) else None
    return None, None


def uses_fsdp(args: TrainingArguments) -> bool:
    """Return whether FSDP shards the model; `accelerate launch` sets it in the environment only."""
    return bool(getattr(args, "fsdp", None)) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def fsdp_version(args: TrainingArguments) -> int | None:
    """Return the version of FSDP that shards the model; None without FSDP.

    The default of the Trainer is 2, in its `fsdp_plugin_args`; that of `accelerate launch`, in the environment, is 1.
    An Accelerator that was made before the Trainer has a plugin of its own.
    """
    if not uses_fsdp(args):
        return None
    given: dict[str, Any] = getattr(args, "fsdp_plugin_args", None) or {}
    plugin: Any = getattr(AcceleratorState, "_shared_state", {}).get("fsdp_plugin")
    if plugin is not None:
        return int(plugin.fsdp_version)
    return int(given.get("fsdp_version") or os.environ.get("FSDP_VERSION") or 1)


def recomputes_activations(args: TrainingArguments) -> bool:
    """Return whether activation checkpointing is on; older transformers call it gradient checkpointing."""
    return bool(getattr(args, f"{_checkpointing(args)}_checkpointing"))


def uses_reentrant_checkpointing(args: TrainingArguments) -> bool:
    """Return whether reentrant activation checkpointing is on."""
    options: Any = getattr(args, f"{_checkpointing(args)}_checkpointing_kwargs") or {}
    return bool(recomputes_activations(args) and options.get("use_reentrant"))


def _checkpointing(args: TrainingArguments) -> str:
    return "activation" if hasattr(args, "activation_checkpointing") else "gradient"


def retries_batch_sizes(args: TrainingArguments) -> bool:
    """Return whether the Trainer starts the training again with a smaller batch after an out-of-memory error."""
    return bool(getattr(args, "auto_find_batch_size", False))


def is_summary(logs: dict[str, float] | None) -> bool:
    """Return whether these logs are the Trainer's summary at the end of a training."""
    return "train_runtime" in (logs or {})


def print_nothing(trainer: Trainer) -> None:
    """Remove the callback that prints the logs of a Trainer without progress bars."""
    trainer.remove_callback(PrinterCallback)


def insert_before_last(state: TrainerState, logs: dict[str, float]) -> None:
    """Add an entry to the log history that keeps the Trainer's own entry of this step the last one."""
    state.log_history.insert(len(state.log_history) - 1, {**logs, "step": state.global_step})


def run_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the Trainer's checkpoints: `output_dir`, or the folder of the trial in it.

    A hyperparameter search names the folder of each trial (`run-0`, or by `hp_name`), and only the Trainer knows the
    name. Callbacks do not get the Trainer, so it is found on the stack.
    """
    if getattr(state, "is_hyper_param_search", False):
        for trainer in _callers("_get_output_dir"):
            with suppress(Exception):  # without the library of the search, or on a process that has no trial
                return Path(trainer._get_output_dir(trainer._trial))
    return Path(args.output_dir or ".")


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint at the current step, in `output_dir`."""
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def log_to_trackers(args: TrainingArguments, state: TrainerState, logs: dict[str, float], model: Any) -> None:
    """Send numbers to the trackers of this run (TensorBoard, trackio, wandb), and not to the console.

    Logging through the Trainer would print these numbers between its own.
    """
    for tracker in _trackers():
        # Trackers take a control and do not change it: any will do.
        tracker.on_log(args, state, TrainerControl(), logs=dict(logs), model=model)


def log_image_to_trackers(state: TrainerState, name: str, make: Callable[[], Any]) -> None:
    """Send an image to those trackers of this run that are TensorBoard or wandb.

    Args:
        state: of the Trainer.
        name: of the image.
        make: returns the image (of Pillow); it is called only if such a tracker is on.
    """
    image: Any = None
    for tracker in _trackers():
        writer: Any = getattr(tracker, "tb_writer", None)
        wandb: Any = getattr(tracker, "_wandb", None)
        runs = getattr(wandb, "run", None) is not None and state.is_world_process_zero
        if writer is not None or runs:
            image = image if image is not None else make()
        if writer is not None:
            writer.add_image(name, asarray(image), state.global_step, dataformats="HWC")
        elif runs:
            wandb.log({name: wandb.Image(image), "train/global_step": state.global_step})


def trainer_flops() -> float:
    """Return the floating-point operations of the steps that the Trainer has not stored yet, by its own estimate.

    It counts 6 for each token and parameter; 0 if the model has no such estimate, or no Trainer is found on the stack.
    """
    trainer = next(_callers("current_flos", "floating_point_ops"), None)
    return float(getattr(trainer, "current_flos", 0.0))


def _trackers() -> Iterator[Any]:
    """Yield the callbacks of this run that send logs elsewhere.

    Callbacks do not get each other, so the handler that calls them is found on the stack.
    """
    handler = next(_callers("callbacks", "call_event"), None)
    for callback in handler.callbacks if handler is not None else ():
        tracks = type(callback).__module__.startswith("transformers.integrations")
        if tracks and not isinstance(callback, ProgressCallback | PrinterCallback):
            yield callback


def _callers(*attributes: str) -> Iterator[Any]:
    """Yield the objects with these attributes whose methods are running, innermost first."""
    for frame in _frames():
        caller: Any = frame.f_locals.get("self")
        if all(hasattr(caller, attribute) for attribute in attributes):
            yield caller


def _frames() -> Iterator[FrameType]:
    """Yield the frames of the functions that are running, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
