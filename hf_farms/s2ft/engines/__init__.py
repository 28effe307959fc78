"""Where the weights and slices of a training are stored, for each training engine.

base.py    what an engine does, and weights that are whole on every process (one process, DDP)
fsdp2.py   weights that FSDP2 has sharded
zero3.py   weights that ZeRO-3 of DeepSpeed has partitioned

An engine is found by the weight, because engines change the parameters of a model that has its slices already.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hf_farms.errors import ModelError
from hf_farms.s2ft.engines.base import PLAIN, Engine, Slices
from hf_farms.s2ft.engines.fsdp2 import FSDP2, local
from hf_farms.s2ft.engines.zero3 import ZERO3

__all__ = ["ENGINES", "PLAIN", "Engine", "Slices", "engine_of", "local", "one_engine", "settle"]

# Asked in this order; `PLAIN` if none of them stores a weight.
ENGINES: tuple[Engine, ...] = (FSDP2, ZERO3)


def engine_of(weight: Tensor) -> Engine:
    """Return the engine that stores a weight."""
    return next((engine for engine in ENGINES if engine.stores(weight)), PLAIN)


def settle(model: nn.Module) -> None:
    """Give the modules of a model their stored parameters back, where a forward pass has replaced them."""
    for engine in ENGINES:
        engine.settle(model)


def one_engine(model: nn.Module) -> Engine:
    """Return the engine that stores all trained layers of a model; `PLAIN` for a model without any.

    Raises:
        ModelError: several engines, or a layer whose slice is stored in another way than its weight.
    """
    settle(model)
    engines: dict[str, tuple[Engine, str]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "s2ft_channels"):
            parts: Any = (module.weight, module.selected)
            engines.update({engine_of(part).name: (engine_of(part), name) for part in parts})
    if len(engines) > 1:
        found = " and ".join(f"{kind} ({name})" for kind, (_, name) in sorted(engines.items()))
        raise ModelError(
            f"trained layers must all be stored by one engine for S2FT, got {found}.",
            hint="Shard the whole model, or none of it.",
        )
    return next((engine for engine, _ in engines.values()), PLAIN)
