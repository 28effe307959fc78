"""Settings of a Trainer that the callbacks cannot work with, refused before the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

__all__ = ["check_supported", "require_step_hooks"]


def check_supported(args: TrainingArguments, model: nn.Module, optimizer: Any) -> None:
    """Refuse what steps where no step hook of the optimizer sees it.

    Raises:
        ValueError: DeepSpeed, FSDP 1, a layer-wise optimizer of GaLore or APOLLO, LOMO, an optimizer that finds
            its own learning rate.
    """
    require_step_hooks(args, "FarmsLRCallback")
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "weights must be whole or sharded by FSDP2 for FarmsLRCallback, got FSDP1. Set fsdp_version: 2."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer must be a torch optimizer for FarmsLRCallback, got {type(optimizer).__name__}. "
            "Use one of the Trainer's own."
        )
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise ValueError(
            "optimizer must take its learning rate from its groups for FarmsLRCallback, got "
            f"{type(optimizer).__name__} that finds its own. Set relative_step=False and a learning rate."
        )


def require_step_hooks(args: TrainingArguments, who: str) -> None:
    """Refuse trainings whose weights change elsewhere than in the step of a torch optimizer.

    Raises:
        ValueError: DeepSpeed, a layer-wise optimizer of GaLore or APOLLO, LOMO.
    """
    name = str(getattr(args.optim, "value", args.optim))
    if getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None):
        raise ValueError(
            f"training must step through a torch optimizer for {who}, got DeepSpeed, which steps inside its backward. "
            "Use DDP or FSDP2."
        )
    if name.endswith("_layerwise") or name in ("lomo", "adalomo"):
        raise ValueError(
            f"optim must be an optimizer with a step of its own for {who}, got {name!r}, which updates weights during "
            "the backward. Use --optim adamw_torch."
        )
