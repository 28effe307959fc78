"""Remove wrappers around a model or inside it: torch.compile, DDP, FSDP, DeepSpeed, PEFT."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

__all__ = ["is_fsdp1", "plain_name", "run_eagerly", "unwrapped"]

# Wrapper classes that hold the model as `module`. By name, because their libraries may not be installed.
WRAPPER_CLASSES = frozenset({"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"})
# Name parts that wrappers insert.
WRAPPER_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside all wrappers, with the names of its checkpoint; PEFT adapters stay on its layers."""
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    for name in WRAPPER_NAMES:
        if isinstance(inner := model._modules.get(name), nn.Module):
            return inner
    if any(base.__name__ in WRAPPER_CLASSES for base in type(model).__mro__):
        inner = getattr(model, "module", None)
        return inner if isinstance(inner, nn.Module) else None
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        base = cast(Any, model).get_base_model()
        return base if isinstance(base, nn.Module) and base is not model else None
    return None


def is_fsdp1(model: nn.Module) -> bool:
    """Return whether FSDP1 has wrapped the model or a part of it."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


def plain_name(name: str) -> str:
    """Remove the parts that wrappers insert from a module or parameter name."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run compiled modules eagerly within the context: a compiled graph would ignore replaced blocks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
