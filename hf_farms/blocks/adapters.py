"""Compute the effective weight of a layer with PEFT adapters. PEFT itself is never imported."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BASE", "active_copy", "base_path", "innermost_base", "is_adapted", "with_adapters"]

# Attribute of a PEFT layer that holds the layer it wraps. Adapters of several kinds wrap each other.
BASE = "base_layer"


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module is a PEFT adapter layer. A `base_layer` attribute alone is not enough."""
    return isinstance(getattr(module, BASE, None), nn.Module) and hasattr(module, "active_adapters")


def innermost_base(module: nn.Module) -> nn.Module:
    """Return the module under all adapters, or the module itself if it has none."""
    while is_adapted(module):
        module = getattr(module, BASE)
    return module


def base_path(module: nn.Module) -> str:
    """Return the path from a module to the one under its adapters, such as `.base_layer`; empty without adapters."""
    path = ""
    while is_adapted(module):
        module, path = getattr(module, BASE), f"{path}.{BASE}"
    return path


def active_copy(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the active copy of a module that PEFT trains in full (`modules_to_save`).

    Returns:
        Path of the copy inside the module, and the copy. None if the module is not such a wrapper.
    """
    copies, original = getattr(module, "modules_to_save", None), getattr(module, "original_module", None)
    if not isinstance(copies, nn.ModuleDict) or not isinstance(original, nn.Module):
        return None
    active = [] if getattr(module, "disable_adapters", False) else _active_adapters(module)
    name = next((name for name in active if name in copies), None)
    return ("original_module", original) if name is None else (f"modules_to_save.{name}", copies[name])


def with_adapters(module: nn.Module, weight: Tensor) -> tuple[Tensor, list[str]]:
    """Return a weight with the active adapters applied; the module is not modified.

    Only adapters that can compute a change of the weight (`get_delta_weight`) are applied. The delta of LoRA is added.
    All others are merged into a copy, because some of them (OFT, HRA, BOFT) rotate the weight. Costs one copy of the
    weight per kind of adapter.

    Args:
        module: the outermost adapter layer.
        weight: `(out, in)`, weight of the module under all adapters, in a float dtype.

    Returns:
        The weight, and one line with the reason for each adapter that was not applied.
    """
    left_out: list[str] = []
    for adapter in reversed(list(_adapter_layers(module))):
        names, kind = [name for name in _active_adapters(adapter) if _has_adapter(adapter, name)], _kind(adapter)
        if getattr(adapter, "merged", False) or getattr(adapter, "disable_adapters", False):
            continue
        if kind == "XLORA":
            # X-LoRA computes the mixing weights of its adapters from the input.
            left_out.append(f"{kind} (it depends on the input)")
        elif names and not hasattr(adapter, "get_delta_weight"):
            left_out.append(f"{kind} (it has no get_delta_weight)")
        elif names:
            try:
                weight = _apply_adapters(adapter, names, weight)
            except Exception as error:  # adapters raise many types when they cannot merge
                left_out.append(f"{kind} ({type(error).__name__}: {error})")
    return weight, left_out


def _adapter_layers(module: nn.Module) -> Iterator[Any]:
    """Yield the nested adapter layers, outermost first."""
    while is_adapted(module):
        yield module
        module = getattr(module, BASE)


def _active_adapters(adapter: Any) -> list[str]:
    """Return the names of the active adapters."""
    active = adapter.active_adapters
    return [active] if isinstance(active, str) else list(active)


def _has_adapter(adapter: Any, name: str) -> bool:
    """Return whether the layer has an adapter of that name."""
    return any(name in getattr(adapter, attribute, ()) for attribute in adapter.adapter_layer_names)


def _kind(adapter: Any) -> str:
    """Return the kind of adapter, such as IA3, from the PEFT package that defines it."""
    package = type(adapter).__module__.removeprefix("peft.tuners.").partition(".")[0].upper()
    # X-LoRA replaces the forward of LoRA layers.
    forward = type(getattr(adapter.forward, "__self__", None)).__module__
    return "XLORA" if ".xlora." in forward else package


@torch.no_grad()
def _apply_adapters(adapter: Any, names: list[str], weight: Tensor) -> Tensor:
    """Return the weight with the named adapters of one layer applied."""
    variants = getattr(adapter, "lora_variant", ())
    if all(name in getattr(adapter, "lora_A", ()) and name not in variants for name in names):
        for name in names:
            weight = weight + _full_tensor(adapter.get_delta_weight(name)).to(weight)
        return weight
    base = innermost_base(adapter)
    if base.weight.shape != weight.shape or base.weight.dtype != weight.dtype:
        raise TypeError("its base weight is quantized or sharded")
    stand_in = _shallow_copy(base)
    for name, parameter in base.named_parameters(recurse=False):
        # Some adapters also change the bias, in place.
        value = weight if name == "weight" else parameter
        stand_in._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
    merging = _shallow_copy(adapter)
    merging._modules[BASE] = stand_in
    merging.training, merging.merged_adapters = False, []
    merging.merge(safe_merge=False, adapter_names=names)
    if not merging.merged:
        raise NotImplementedError("it does not merge")
    merged: Tensor = stand_in.weight.detach()
    return merged


def _shallow_copy(module: Any) -> Any:
    """Copy a module shallowly: same parameters, but its attributes can be set independently."""
    other = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict | list | set):
            vars(other)[name] = copy.copy(value)
    return other


def _full_tensor(tensor: Any) -> Tensor:
    """Gather a tensor that may be sharded."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
