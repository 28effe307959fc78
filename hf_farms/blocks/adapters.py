"""The weight that a layer with adapters of PEFT on it computes with. PEFT itself is never imported."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BASE", "active_copy", "base_path", "innermost_base", "is_adapted", "with_adapters"]

# The name of what an adapter is on; adapters of several kinds are on each other.
BASE = "base_layer"


def is_adapted(module: nn.Module) -> bool:
    """Whether adapters are on this module; plain modules may have something called `base_layer` too."""
    return isinstance(getattr(module, BASE, None), nn.Module) and hasattr(module, "active_adapters")


def innermost_base(module: nn.Module) -> nn.Module:
    """The module under all adapters; a module without adapters itself."""
    while is_adapted(module):
        module = getattr(module, BASE)
    return module


def base_path(module: nn.Module) -> str:
    """The path from a module to the one under its adapters: `.base_layer`; empty without adapters."""
    path = ""
    while is_adapted(module):
        module, path = getattr(module, BASE), f"{path}.{BASE}"
    return path


def active_copy(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Of a module that is trained and saved whole beside adapters (`modules_to_save`) the copy that computes.

    Returns:
        Its path inside the module, and the copy; None: the module is no such wrapper.
    """
    copies, original = getattr(module, "modules_to_save", None), getattr(module, "original_module", None)
    if not isinstance(copies, nn.ModuleDict) or not isinstance(original, nn.Module):
        return None
    active = [] if getattr(module, "disable_adapters", False) else _names(module)
    name = next((name for name in active if name in copies), None)
    return ("original_module", original) if name is None else (f"modules_to_save.{name}", copies[name])


def with_adapters(module: nn.Module, weight: Tensor) -> tuple[Tensor, list[str]]:
    """A weight with the active adapters on it; nothing is changed.

    Adapters that can compute a change of the weight (`get_delta_weight`) are counted in: LoRA's is added, all others
    are merged into a copy, because for some of them (OFT, HRA, BOFT) it is a rotation and not a sum.

    Args:
        module: with adapters.
        weight: of the module under all adapters, in a float dtype.

    Returns:
        The weight, and which adapters are not in it, each with the reason.
    """
    left_out: list[str] = []
    for adapter in reversed(list(_adapted(module))):
        names, kind = [name for name in _names(adapter) if _has(adapter, name)], _kind(adapter)
        if getattr(adapter, "merged", False) or getattr(adapter, "disable_adapters", False):
            continue
        if kind == "XLORA":
            # Which adapters, and how much of each, is not said in the layer.
            left_out.append(f"{kind} (it depends on the input)")
        elif names and not hasattr(adapter, "get_delta_weight"):
            left_out.append(f"{kind} (it has no get_delta_weight)")
        elif names:
            try:
                weight = _with(adapter, names, weight)
            except Exception as error:  # whatever an adapter cannot do on this weight
                left_out.append(f"{kind} ({type(error).__name__}: {error})")
    return weight, left_out


def _adapted(module: nn.Module) -> Iterator[Any]:
    """The adapters on each other, from the outside in."""
    while is_adapted(module):
        yield module
        module = getattr(module, BASE)


def _names(adapter: Any) -> list[str]:
    """Active adapters."""
    active = adapter.active_adapters
    return [active] if isinstance(active, str) else list(active)


def _has(adapter: Any, name: str) -> bool:
    """Whether an adapter of that name is on this layer."""
    return any(name in getattr(adapter, attribute, ()) for attribute in adapter.adapter_layer_names)


def _kind(adapter: Any) -> str:
    """PEFT's name for the kind of adapter, such as IA3: that of the package that it comes from."""
    package = type(adapter).__module__.removeprefix("peft.tuners.").partition(".")[0].upper()
    # X-LoRA replaces the forward of layers of LoRA.
    forward = type(getattr(adapter.forward, "__self__", None)).__module__
    return "XLORA" if ".xlora." in forward else package


@torch.no_grad()
def _with(adapter: Any, names: list[str], weight: Tensor) -> Tensor:
    """The weight with these adapters of one kind on it."""
    variants = getattr(adapter, "lora_variant", ())
    if all(name in getattr(adapter, "lora_A", ()) and name not in variants for name in names):
        for name in names:
            weight = weight + _whole(adapter.get_delta_weight(name)).to(weight)
        return weight
    base = innermost_base(adapter)
    if base.weight.shape != weight.shape or base.weight.dtype != weight.dtype:
        raise TypeError("its base weight is quantised or sharded")
    stand_in = _shallow(base)
    for name, parameter in base.named_parameters(recurse=False):
        # Some change the bias too, in place.
        own = weight if name == "weight" else parameter
        stand_in._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=False)
    merging = _shallow(adapter)
    merging._modules[BASE] = stand_in
    merging.training, merging.merged_adapters = False, []
    merging.merge(safe_merge=False, adapter_names=names)
    if not merging.merged:
        raise NotImplementedError("it does not merge")
    merged: Tensor = stand_in.weight.detach()
    return merged


def _shallow(module: Any) -> Any:
    """Another module with the same parameters, whose attributes can be set without changing the first one."""
    other = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict | list | set):
            vars(other)[name] = copy.copy(value)
    return other


def _whole(tensor: Any) -> Tensor:
    """All of a tensor that may be sharded."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
