"""Compute parameters and buffers that no checkpoint file holds, such as the frequencies of rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hf_farms.blocks.checkpoint_tensors import StoredTensors
from hf_farms.errors import ModelError

__all__ = ["compute_unsaved", "replacement_for"]

# A tensor with its name, its meta tensor, and the new tensor on the device.
Unsaved = tuple[str, Tensor, Tensor]


def compute_unsaved(model: nn.Module, stored: StoredTensors, device: torch.device) -> list[nn.Parameter]:
    """Replace the meta tensors that no file holds, as transformers does on loading.

    All tensors at once, because a module may fill the buffers of the modules inside it. Each tensor is computed twice
    on different initial bytes: a tensor that keeps them was not computed.

    Args:
        model: transformers model on the meta device; modified in place.
        stored: parameters that files hold.
        device: device of the new tensors.

    Returns:
        The new parameters (not the buffers).

    Raises:
        ModelError: neither the files nor the model provide a tensor.
    """
    unsaved = _replace_unsaved(model, stored, device)
    tensors = [(name, tensor.data) for name, _, tensor in unsaved]
    _initialize(model, tensors, 0)
    first = [tensor.clone() for _, tensor in tensors]
    _initialize(model, tensors, 255)
    untouched = [name for (name, tensor), other in zip(tensors, first, strict=True) if not _same_bytes(tensor, other)]
    if untouched:
        raise ModelError(
            f"buffers must be in the files or computed by the model, got neither for {untouched[0]}.",
            hint="Load the model in memory, and check that it computes them.",
        )
    return [tensor for _, _, tensor in unsaved if isinstance(tensor, nn.Parameter)]


def _replace_unsaved(model: nn.Module, stored: StoredTensors, device: torch.device) -> list[Unsaved]:
    unsaved: dict[int, Unsaved] = {}
    for path, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, blank in list(tensors.items()):
                full = f"{path}.{name}" if path else name
                if blank is None or not blank.is_meta:
                    continue
                if name not in module._non_persistent_buffers_set and stored.has(full):
                    blank._is_hf_initialized = True
                    continue
                if id(blank) not in unsaved:
                    empty = torch.empty_like(blank, device=device, memory_format=torch.contiguous_format)
                    new = nn.Parameter(empty, blank.requires_grad) if isinstance(blank, nn.Parameter) else empty
                    unsaved[id(blank)] = full, blank, new
                tensors[name] = cast(nn.Parameter, unsaved[id(blank)][2])
    return list(unsaved.values())


def _initialize(model: nn.Module, tensors: Sequence[tuple[str, Tensor]], byte: int) -> None:
    """Fill tensors with one byte, then let the model initialize them."""
    from transformers import initialization

    for _, tensor in tensors:
        tensor.view(-1).view(torch.uint8).fill_(byte)
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    with torch.no_grad(), torch.random.fork_rng(), initialization.guard_torch_init_functions():
        torch.manual_seed(0)
        model.initialize_weights()  # type: ignore[operator]


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


def replacement_for(blank: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor as replacement of a meta parameter or buffer, marked so that transformers keeps its values."""
    if isinstance(blank, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=blank.requires_grad)
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    return tensor
