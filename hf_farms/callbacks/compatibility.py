"""Reject trainings that the callbacks cannot work with, before the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from hf_farms.blocks.wrappers import is_fsdp1
from hf_farms.callbacks.deepspeed import check_deepspeed_config, check_deepspeed_s2ft
from hf_farms.callbacks.resuming import check_given_checkpoint
from hf_farms.callbacks.trainer import fsdp_version, optimizer_name, uses_deepspeed, uses_fsdp
from hf_farms.config import S2FTConfig

__all__ = [
    "PERMUTED",
    "check_not_fsdp1",
    "check_one_engine",
    "check_s2ft_supported",
    "check_supported",
    "require_step_hooks",
]

FSDP1 = "weights must be whole or sharded by FSDP2 for {}, got FSDP1. Set fsdp_version: 2."
PERMUTED = (
    "layout must be 'indexed' for {} under FSDP2, got 'permuted', whose order is undone on whole weights. Pass "
    "S2FTConfig(layout='indexed')."
)


def check_supported(
    args: TrainingArguments, model: nn.Module, optimizer: Any, *, name: str = "FarmsLRCallback", monitor: bool = False
) -> None:
    """Reject trainings whose steps cannot be given layer-wise rates.

    Args:
        args: of the Trainer.
        model: that is trained.
        optimizer: without wrappers.
        name: of the callback, for the message.
        monitor: whether weights are read only, and steps stay as they are.

    Raises:
        ValueError: FSDP1; unless only monitored, a config of DeepSpeed with an optimizer or scheduler of its own, a
            layer-wise optimizer of GaLore or APOLLO, LOMO, an optimizer that computes its own learning rate.
    """
    check_one_engine(args, name)
    if not monitor:
        if uses_deepspeed(args):
            check_deepspeed_config(args, name)
        require_step_hooks(args, name)
    check_not_fsdp1(model, name)
    if monitor:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer must be a torch optimizer for {name}, got {type(optimizer).__name__}. "
            "Use one of the Trainer's own."
        )
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise ValueError(
            f"optimizer must take its learning rate from its groups for {name}, got {type(optimizer).__name__} that "
            "finds its own. Set relative_step=False and a learning rate."
        )


def check_one_engine(args: TrainingArguments, name: str) -> None:
    """Reject a training that two engines are asked to run: accelerate takes DeepSpeed then, without a word.

    Raises:
        ValueError: with the way out.
    """
    if uses_deepspeed(args) and uses_fsdp(args):
        raise ValueError(
            f"one engine must run the training for {name}, got DeepSpeed and FSDP. Remove one of them from "
            "TrainingArguments and from the options of accelerate launch."
        )


def check_not_fsdp1(model: nn.Module, name: str) -> None:
    """Reject models that FSDP1 has sharded.

    Raises:
        ValueError: with the way out.
    """
    if is_fsdp1(model):
        raise ValueError(FSDP1.format(name))


def check_s2ft_supported(args: TrainingArguments, config: S2FTConfig) -> None:
    """Reject trainings that S2FTCallback cannot work with.

    These change weights outside the optimizer's step, or read parameters by position or by the names of a plain model.

    Raises:
        ValueError: as `require_step_hooks`; FSDP1, layout "permuted" under FSDP2 or ZeRO-3, `write_back=False` under
            ZeRO-3, a checkpoint of another engine, a schedule-free optimizer, vLLM or a moving reference model in trl.
    """
    name = "S2FTCallback"
    check_one_engine(args, name)
    if uses_deepspeed(args):
        check_deepspeed_s2ft(args, config, name)
    require_step_hooks(args, name)
    optim = optimizer_name(args)
    if optim.startswith("schedule_free"):
        raise ValueError(
            f"optim must change weights in its step only for {name}, got {optim!r}, which changes them for every "
            "evaluation. Set optim='adamw_torch'."
        )
    version = fsdp_version(args)
    if version == 1:
        raise ValueError(FSDP1.format(name))
    if version is not None and config.layout == "permuted":
        raise ValueError(PERMUTED.format(name))
    check_given_checkpoint(args, name)
    if getattr(args, "use_vllm", False):
        raise ValueError(
            f"generation must run in the model itself for {name}, got use_vllm=True, which sends every named "
            "parameter to vLLM, the slices too. Set use_vllm=False."
        )
    if getattr(args, "sync_ref_model", False):
        raise ValueError(
            f"the reference model must not change for {name}, got sync_ref_model=True, which mixes parameters by "
            "position. Set sync_ref_model=False."
        )


def require_step_hooks(args: TrainingArguments, name: str) -> None:
    """Reject trainings that update weights without calling the optimizer's step hooks.

    Args:
        args: of the Trainer.
        name: of the callback, for the message.

    Raises:
        ValueError: a layer-wise optimizer of GaLore or APOLLO, LOMO.
    """
    optim = optimizer_name(args)
    if optim.endswith("_layerwise") or optim in ("lomo", "adalomo"):
        raise ValueError(
            f"optim must be an optimizer with a step of its own for {name}, got {optim!r}, which updates weights "
            "during the backward. Set optim='adamw_torch'."
        )
