"""Which layers of a block are routers: their output chooses what a token is sent to, or attends to.

A router is known by its place and its size: it lies beside the experts, and has one output for each of them (some
models add experts that do nothing). Names and classes help where the experts are not told by their module.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from hf_farms.blocks.layouts import is_experts

__all__ = ["router_paths"]

# Parts of a path, or of the name of a class, that say it: routers, and the indexers of sparse attention, which choose
# the tokens that a query sees; the gates with which such an attention weighs tokens when it puts them together.
NAMED = re.compile(r"(^|_)(router|indexer)($|_)")
CLASSES = re.compile(r"(Router|Indexer)")
GATES = re.compile(r"(^|\.)compressor\.gate_proj$")
# Names of a router beside experts; a gate that is not beside any may be half of a feed-forward network.
BESIDE = frozenset({"gate", "wg", "gating", "classifier"})
SHARED = re.compile(r"shared|dense|residual")
# Experts that a config adds to those with weights: they do nothing, or are shared and weighed by the router too.
ADDED = ("zero_expert_num", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


def router_paths(block: nn.Module, config: Any) -> frozenset[str]:
    """Paths inside the block of the modules that are routers or parts of one.

    Args:
        block: with its modules.
        config: of the (text) model.
    """
    modules = dict(block.named_modules())
    found = {path for path, module in modules.items() if path and _says_so(path, module)}
    for path, module in modules.items():
        if (count := _experts_beside(module)) is not None:
            counts = {count, count + 1} | {count + int(getattr(config, name, 0) or 0) for name in ADDED}
            for name, child in module.named_children():
                if _routes(name, child, counts):
                    found.add(f"{path}.{name}" if path else name)
    return frozenset(
        path for path in modules if any(path == router or path.startswith(f"{router}.") for router in found)
    )


def _says_so(path: str, module: nn.Module) -> bool:
    # Not experts that lie inside a router.
    named = NAMED.search(path.rpartition(".")[2]) or CLASSES.search(type(module).__name__) or GATES.search(path)
    return bool(named) and not any(_experts_beside(inner) is not None for inner in module.modules())


def _experts_beside(module: nn.Module) -> int | None:
    """How many experts a module has among its children; None: it has none."""
    for name, child in module.named_children():
        if SHARED.search(name):
            continue
        weights = [p for p in child.parameters(recurse=False) if p.ndim == 3] if is_experts(child) else []
        if weights:
            return len(weights[0])
        if "expert" in name and isinstance(child, nn.ModuleList | nn.ModuleDict) and len(child) > 1:
            return len(child)
    return None


def _routes(name: str, child: nn.Module, counts: set[int]) -> bool:
    """Whether a child of a module with experts is their router."""
    if is_experts(child) or SHARED.search(name) or isinstance(child, nn.ModuleList | nn.ModuleDict):
        return False
    if name in BESIDE:
        return True
    shapes = [tuple(p.shape) for p in child.parameters(recurse=False) if p.ndim == 2]
    return any(rows in counts and rows < columns for rows, columns in shapes)
