"""Wrappers around a model, or around modules inside it: torch.compile, data parallelism, PEFT."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

__all__ = ["plain_name", "run_eagerly", "unwrapped"]

# Wrappers that keep the model under `module`, by the names of their classes: their libraries may not be installed.
HOLDERS = frozenset({"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"})
# Parts of a name that no model has itself.
WRAPPED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, whose names are those of its checkpoint; adapters of PEFT stay on its layers."""
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    for name in WRAPPED:
        if isinstance(inner := model._modules.get(name), nn.Module):
            return inner
    if any(base.__name__ in HOLDERS for base in type(model).__mro__):
        inner = getattr(model, "module", None)
        return inner if isinstance(inner, nn.Module) else None
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        base = cast(Any, model).get_base_model()
        return base if isinstance(base, nn.Module) and base is not model else None
    return None


def plain_name(name: str) -> str:
    """A module's or parameter's name without the wrappers that are inside the model."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


@contextmanager
def run_eagerly() -> Iterator[None]:
    """While open, compiled modules run as they were written: their graphs would not see what stands in for a block."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
