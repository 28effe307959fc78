"""Arguments that must be a model, or the blocks of one."""

from __future__ import annotations

from typing import cast

from torch import nn

from hf_farms.blocks.wrappers import is_fsdp1
from hf_farms.config.checks import check
from hf_farms.errors import ModelError

__all__ = ["check_blocks", "check_model", "check_not_fsdp1"]

LOAD = "Load it first, for instance with AutoModelForCausalLM.from_pretrained."


def check_model(model: object, *, argument: str = "model") -> None:
    """Refuse anything but a model in memory.

    Raises:
        ValueError: a name, a class, a state dict, or anything else.
        ModelError: a model that FSDP1 has wrapped.
    """
    check(isinstance(model, nn.Module), argument, "a model in memory (torch.nn.Module)", model, LOAD)
    check_not_fsdp1(cast(nn.Module, model))


def check_blocks(model: object, *, also: str = "") -> None:
    """Refuse anything but a model in memory or a source of blocks.

    Args:
        model: that is given.
        also: other things that the function takes, for the sentence.

    Raises:
        ValueError: a class, a config, a state dict, or anything else.
    """
    if isinstance(model, nn.Module):
        return
    hands_out = all(hasattr(model, name) for name in ("metadata", "open", "__len__")) and not isinstance(model, type)
    check(hands_out, "model", f"a model in memory (torch.nn.Module){also}, or the blocks of one", model, LOAD)


def check_not_fsdp1(model: nn.Module) -> None:
    """Refuse a model whose parameters are pieces of flat tensors, without the shapes of their layers.

    Raises:
        ModelError: FSDP1 has wrapped the model or a part of it.
    """
    if is_fsdp1(model):
        raise ModelError(
            "weights must be whole or sharded by FSDP2, got a model that FSDP1 has wrapped.",
            hint="Set fsdp_version: 2, or give the model before it is wrapped.",
        )
