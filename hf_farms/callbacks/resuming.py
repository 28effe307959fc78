"""Reject checkpoints that the engine of a training cannot resume, before the Trainer loads them.

No event of a Trainer names the folder that it resumes, and loading comes before `on_train_begin`. But at the start of
`train` a Trainer asks its stateful callbacks for their state, so that these can look at the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from hf_farms.callbacks.deepspeed import zero_stage
from hf_farms.callbacks.groups import TAG, Group
from hf_farms.callbacks.trainer import TRAINER_STATE_NAME, deepspeed_config, resuming_trainer, uses_deepspeed, uses_fsdp
from hf_farms.files.names import SELECTION

__all__ = [
    "check_given_checkpoint",
    "check_made_groups",
    "check_resumed_checkpoint",
    "check_same_groups",
    "check_unmade_groups",
    "checkpoint_engine",
    "resumed_memory",
]

WHOLE, FSDP = "no sharding", "FSDP"
# Stages 1 and 2 write the same files.
STAGES = {0: "DeepSpeed without ZeRO", 1: "DeepSpeed ZeRO-1 or 2", 2: "DeepSpeed ZeRO-1 or 2", 3: "DeepSpeed ZeRO-3"}
# Files of DeepSpeed in the folder of a step.
PARTS, OPTIMIZERS = "*zero_pp_rank_*_model_states.pt", "*zero_pp_rank_*_optim_states.pt"


def check_given_checkpoint(args: TrainingArguments, name: str) -> None:
    """Reject a checkpoint of another engine that `args` name.

    Raises:
        ValueError: with the way out.
    """
    if isinstance(args.resume_from_checkpoint, str):
        engine = _engine(args, sharded=uses_fsdp(args))
        _check(Path(args.resume_from_checkpoint), engine, args, name)


def check_resumed_checkpoint(name: str, *, loads_anyway: bool = False) -> None:
    """Reject the checkpoint that the Trainer on the stack is about to load, if there is one, and its engine is another.

    Args:
        name: of the callback, for the message.
        loads_anyway: whether a checkpoint is accepted of which the Trainer loads the weights, and no optimizer.

    Raises:
        ValueError: with the way out.
    """
    trainer, folder = resuming_trainer()
    if trainer is None or folder is None:
        return
    engine = _engine(trainer.args, sharded=trainer.is_fsdp_enabled)
    if engine != WHOLE or not loads_anyway:
        _check(folder, engine, trainer.args, name)


def resumed_memory(name: str) -> dict[str, Any]:
    """Return the `memory` of a callback in the checkpoint that the Trainer on the stack resumes; empty without one."""
    _, folder = resuming_trainer()
    if folder is None or not (folder / TRAINER_STATE_NAME).is_file():
        return {}
    saved = (TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).stateful_callbacks or {}).get(name)
    return saved["attributes"].get("memory", {}) if isinstance(saved, dict) else {}


def check_unmade_groups(memory: Mapping[str, Any], callback: object) -> None:
    """Reject a checkpoint with the groups of `layerwise_optimizer` if the Trainer on the stack was not given it.

    Args:
        memory: of the callback in the checkpoint.
        callback: of the Trainer.

    Raises:
        ValueError: with the way out.
    """
    trainer, _ = resuming_trainer()
    given: Any = getattr(trainer, "optimizer_cls_and_kwargs", None)
    options: dict[str, Any] = given[1] if given else {}
    if memory.get("groups") and options.get("callback") is not callback and uses_deepspeed(trainer.args):
        raise ValueError(
            "optimizer_cls_and_kwargs must be layerwise_optimizer(callback) as in the training of the checkpoint, "
            f"whose optimizer has {len(memory['groups'])} groups, got none. Resume with that line."
        )


def check_made_groups(memory: Mapping[str, Any], groups: Iterable[Group]) -> None:
    """Reject a checkpoint of other groups than those that `layerwise_optimizer` has made.

    Args:
        memory: of the callback in the checkpoint; earlier versions did not store the groups.
        groups: of this training.

    Raises:
        ValueError: with the way out.
    """
    if memory.get("groups", ()) is None:
        raise ValueError(
            "optimizer_cls_and_kwargs must be left out as in the training of the checkpoint, got layerwise_optimizer. "
            "Resume without it."
        )
    if memory.get("groups"):
        check_same_groups(memory["groups"], [group[TAG] for group in groups])


def check_same_groups(saved: Sequence[list[str] | None], own: Sequence[list[str] | None]) -> None:
    """Reject a checkpoint whose groups follow other layers or patterns: states would go to other parameters.

    Args:
        saved: the keys of its groups.
        own: those of this training.

    Raises:
        ValueError: names the first difference.
    """
    if list(saved) == list(own):
        return
    number, pair = next((i, pair) for i, pair in enumerate(zip_longest(saved, own, fillvalue=())) if pair[0] != pair[1])
    found, expected = (", ".join(key or ["no layer"])[:200] for key in pair)
    raise ValueError(
        f"the checkpoint must have the optimizer's groups of this training, {len(own)}, got {len(saved)}; group "
        f"{number} is that of {found}, not of {expected}. Resume with layerwise_optimizer, the patterns and the `unit` "
        "of before."
    )


def _engine(args: TrainingArguments, *, sharded: bool) -> str:
    """Return the engine of a training, as `checkpoint_engine` names it."""
    if uses_deepspeed(args):
        return STAGES[zero_stage(args)]
    return FSDP if sharded else WHOLE


def checkpoint_engine(folder: Path) -> str | None:
    """Return the engine that wrote a checkpoint of a Trainer.

    Returns:
        None for a folder without the state of an optimizer, and for DeepSpeed's universal files, which all stages read.
    """
    if any(folder.glob("global_step*_universal")):
        return None
    if any(folder.glob("global_step*")):
        stage = 3 if any(folder.glob(f"global_step*/{PARTS}")) else 2
        return STAGES[stage if any(folder.glob(f"global_step*/{OPTIMIZERS}")) else 0]
    if any(folder.glob("pytorch_model_fsdp*")):
        return FSDP
    return WHOLE if (folder / "optimizer.pt").exists() else None


def _check(folder: Path, engine: str, args: TrainingArguments, name: str) -> None:
    written = checkpoint_engine(folder)
    if written is not None and written != engine:
        raise ValueError(
            f"resume_from_checkpoint must be a checkpoint of a training with {engine} for {name}, got "
            f"{str(folder)!r} of one with {written}. Resume it as it was started, or train its model anew"
            f"{_selection_of(folder)}."
        )

    count = len(list(folder.glob(f"global_step*/{OPTIMIZERS}")))
    if written is not None and count not in (0, args.world_size) and not _reads_other_numbers(args):
        raise ValueError(
            f"resume_from_checkpoint must be a checkpoint of as many processes as now, {args.world_size}, for {name} "
            f"under {engine}, got {str(folder)!r} of {count}. Resume with {count} processes, or train its model anew"
            f"{_selection_of(folder)}."
        )


def _reads_other_numbers(args: TrainingArguments) -> bool:
    """Return whether the config has DeepSpeed read files of other processes, or keep them on the disk of each node."""
    config = deepspeed_config(args)
    elastic = (config.get("zero_optimization") or {}).get("elastic_checkpoint")
    return bool(elastic or (config.get("checkpoint") or {}).get("use_node_local_storage"))


def _selection_of(folder: Path) -> str:
    chosen = (folder / SELECTION).is_file()
    return f" with S2FTCallback(selection=load_selection({str(folder)!r}))" if chosen else ""
