"""Find the routers of a block: layers whose output selects the experts, or the positions, that a token uses.

A router is recognized by position and size: it is a sibling of the experts, with one output per expert (some models
add experts without weights). Names and classes are used where position and size are not enough.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from hf_farms.blocks.layouts import is_experts
from hf_farms.blocks.partitioned import whole_shape

__all__ = ["router_paths"]

# Module and class names of routers, of the indexers of sparse attention (they select the tokens that a query sees), and
# of the gates with which sparse attention weighs tokens when it compresses them.
NAMED = re.compile(r"(^|_)(router|indexer)($|_)")
CLASSES = re.compile(r"(Router|Indexer)")
GATES = re.compile(r"(^|\.)compressor\.gate_proj$")
# Names of a router that is a sibling of experts. Elsewhere a gate may belong to a feed-forward network.
SIBLING_NAMES = frozenset({"gate", "wg", "gating", "classifier"})
SHARED = re.compile(r"shared|dense|residual")
# Config fields with further outputs of the router: experts without weights, and shared experts that it also weighs.
EXTRA_EXPERTS = ("zero_expert_num", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


def router_paths(block: nn.Module, config: Any) -> frozenset[str]:
    """Find the paths inside a block of all modules that are routers or parts of one.

    Args:
        block: the block.
        config: config of the (text) model.
    """
    modules = dict(block.named_modules())
    routers = {path for path, module in modules.items() if path and _has_router_name(path, module)}
    for path, module in modules.items():
        if (count := _count_experts(module)) is not None:
            sizes = {count, count + 1} | {count + int(getattr(config, name, 0) or 0) for name in EXTRA_EXPERTS}
            for name, child in module.named_children():
                if _is_router(name, child, sizes):
                    routers.add(f"{path}.{name}" if path else name)
    return frozenset(
        path for path in modules if any(path == router or path.startswith(f"{router}.") for router in routers)
    )


def _has_router_name(path: str, module: nn.Module) -> bool:
    # Some routers contain the experts; those are no routers themselves.
    named = NAMED.search(path.rpartition(".")[2]) or CLASSES.search(type(module).__name__) or GATES.search(path)
    return bool(named) and not any(_count_experts(inner) is not None for inner in module.modules())


def _count_experts(module: nn.Module) -> int | None:
    """Return the number of experts among the children of a module; None without experts."""
    for name, child in module.named_children():
        if SHARED.search(name):
            continue
        weights = [p for p in child.parameters(recurse=False) if len(whole_shape(p)) == 3] if is_experts(child) else []
        if weights:
            return whole_shape(weights[0])[0]
        if "expert" in name and isinstance(child, nn.ModuleList | nn.ModuleDict) and len(child) > 1:
            return len(child)
    return None


def _is_router(name: str, child: nn.Module, sizes: set[int]) -> bool:
    """Return whether a sibling of experts is their router; `sizes` are the possible numbers of its outputs."""
    if is_experts(child) or SHARED.search(name) or isinstance(child, nn.ModuleList | nn.ModuleDict):
        return False
    if name in SIBLING_NAMES:
        return True
    shapes = map(whole_shape, child.parameters(recurse=False))
    return any(shape[0] in sizes and shape[0] < shape[1] for shape in shapes if len(shape) == 2)
