"""Layer-wise rates in a training that DeepSpeed runs: checks, and the groups that its optimizers are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from hf_farms.blocks import plain_name
from hf_farms.callbacks.groups import TAG, Key, LayerwiseGroups
from hf_farms.callbacks.trainer import deepspeed_config, deepspeed_optimizer
from hf_farms.callbacks.zero_fragments import FragmentError, find_fragments
from hf_farms.callbacks.zero_groups import FragmentLayout, TaggedLayout, ZeroGroups
from hf_farms.config import LRQuantity, S2FTConfig
from hf_farms.processes import launched_ranks

__all__ = ["check_deepspeed_config", "check_deepspeed_s2ft", "deepspeed_groups", "engine_name", "zero_stage"]

# Optimizers that compute every element from that element, its gradient and its state, so that parts of a tensor can be
# stepped on: of torch, and of DeepSpeed.
BY_ELEMENT = frozenset({"SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "FusedAdam", "DeepSpeedCPUAdam", "FusedLion"})
BY_ELEMENT |= {"DeepSpeedCPULion", "DeepSpeedCPUAdagrad"}

REPLACED_BY = {
    "optimizer": "optim, learning_rate and weight_decay of TrainingArguments replace it",
    "scheduler": "lr_scheduler_type and warmup_steps of TrainingArguments replace it",
}


def zero_stage(args: TrainingArguments) -> int:
    """Return the stage of ZeRO, 0 if nothing is sharded."""
    return int((deepspeed_config(args).get("zero_optimization") or {}).get("stage") or 0)


def engine_name(args: TrainingArguments) -> str:
    """Return the name of the engine and stage, as messages call it."""
    stage = zero_stage(args)
    return f"DeepSpeed ZeRO-{stage}" if stage else "DeepSpeed"


def check_deepspeed_config(args: TrainingArguments, name: str) -> None:
    """Reject a config of DeepSpeed with an optimizer or scheduler of its own: the Trainer's are the ones that work.

    Args:
        args: of the Trainer.
        name: of the callback, for the message.

    Raises:
        ValueError: the message names the entry to remove.
    """
    config = deepspeed_config(args)
    for entry, replaced in REPLACED_BY.items():
        if entry in config:
            kind = (config[entry] or {}).get("type")
            raise ValueError(
                f"the DeepSpeed config must leave the {entry} to the Trainer for {name}, got "
                f'{kind or config[entry]!r}. Remove its entry "{entry}": {replaced}.'
            )


def check_deepspeed_s2ft(args: TrainingArguments, config: S2FTConfig, name: str) -> None:
    """Reject options of S2FT that need whole weights, under ZeRO-3.

    Raises:
        ValueError: with the way out.
    """
    if zero_stage(args) < 3:
        return
    if config.layout == "permuted":
        raise ValueError(
            f"layout must be 'indexed' for {name} under ZeRO-3, got 'permuted', whose order is undone on whole "
            "weights. Pass S2FTConfig(layout='indexed')."
        )
    if not config.write_back:
        raise ValueError(
            f"write_back must be True for {name} under ZeRO-3, got False: checkpoints are made of the weights as they "
            "are. Pass S2FTConfig(write_back=True)."
        )


def deepspeed_groups(
    wrapped: Any,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    keys: Mapping[nn.Parameter, Key],
    quantity: LRQuantity,
    *,
    made: Mapping[nn.Parameter, int] | None,
    name: str,
) -> LayerwiseGroups | ZeroGroups:
    """Return the groups for the optimizer of DeepSpeed; all processes call it together.

    Args:
        wrapped: the optimizer with its wrappers.
        optimizer: without them.
        model: that is trained.
        keys: of its parameters.
        quantity: the quantity that is multiplied by the factors.
        made: group of each parameter in the optimizer that `layerwise_optimizer` made for this callback; None without.
        name: of the callback, for the message.

    Raises:
        ValueError: the parameters cannot be found in the flat tensors; the message has the line that helps.
    """
    trained = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(id(p) in held for p in trained.values()):
        # Stage 0 steps on the parameters themselves.
        return LayerwiseGroups(optimizer, keys, quantity, renew=lambda: keys)
    groups = optimizer.param_groups
    if groups and all(TAG in group for group in groups):
        if made is None:
            raise ValueError(
                f"layerwise_optimizer must get the {name} of the training, got another one. Pass "
                "Trainer(callbacks=[callback], optimizer_cls_and_kwargs=layerwise_optimizer(callback))."
            )
        return ZeroGroups(optimizer, keys, quantity, TaggedLayout(groups, made))
    try:
        if type(optimizer).__name__ not in BY_ELEMENT:
            raise FragmentError(f"{type(optimizer).__name__} is not known to compute element by element")
        flats = find_fragments(deepspeed_optimizer(wrapped), optimizer, trained, launched_ranks())
    except FragmentError as error:
        raise ValueError(
            f"the optimizer must have a group for each factor of {name} with this version of DeepSpeed or this "
            f"optimizer ({error}). Pass Trainer(callbacks=[callback], "
            "optimizer_cls_and_kwargs=layerwise_optimizer(callback)), from hf_farms."
        ) from error
    return ZeroGroups(optimizer, keys, quantity, FragmentLayout(flats, keys))
