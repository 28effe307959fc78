"""Arguments that must be a model, or the blocks of one."""

from __future__ import annotations

from torch import nn

from hf_farms.config.checks import check

__all__ = ["check_blocks", "check_model"]

LOAD = "Load it first, for instance with AutoModelForCausalLM.from_pretrained."


def check_model(model: object, *, argument: str = "model") -> None:
    """Refuse anything but a model in memory.

    Raises:
        ValueError: a name, a class, a state dict, or anything else.
    """
    check(isinstance(model, nn.Module), argument, "a model in memory (torch.nn.Module)", model, LOAD)


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
