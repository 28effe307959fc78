"""Zeros that are kept under DeepSpeed, whose optimizers step on flat float32 copies of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_farms.blocks import plain_name
from hf_farms.blocks.partitioned import is_partitioned
from hf_farms.callbacks.trainer import deepspeed_optimizer
from hf_farms.callbacks.zero_fragments import FragmentError, find_fragments
from hf_farms.processes import launched_ranks

__all__ = ["hook_flat_masks", "steps_on_copies", "zero_gradients_early"]


def steps_on_copies(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Return whether the optimizer has none of the trained parameters; stage 0 of DeepSpeed steps on themselves."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return not any(id(parameter) in held for parameter in model.parameters() if parameter.requires_grad)


def hook_flat_masks(
    wrapped: Any, optimizer: torch.optim.Optimizer, model: nn.Module, kept: Sequence[nn.Parameter], *, name: str
) -> tuple[bool, RemovableHandle]:
    """Zero the elements of the flat tensors after each step that are zero now; all processes call it together.

    DeepSpeed copies the flat tensors into the weights after the step.

    Args:
        wrapped: the optimizer with its wrappers.
        optimizer: without them.
        model: that is trained.
        kept: the parameters whose zeros are kept.
        name: of the callback, for the message.

    Returns:
        Whether any process has such a zero, and the handle of the hook.

    Raises:
        ValueError: the parameters cannot be found in the flat tensors.
    """
    ranks = launched_ranks()
    trained = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    try:
        flats = find_fragments(deepspeed_optimizer(wrapped), optimizer, trained, ranks)
    except FragmentError as error:
        raise ValueError(
            f"weights must be found in the flat tensors of DeepSpeed for {name}, got another version or form of it "
            f"({error}). Use DDP or FSDP2."
        ) from error
    chosen = {id(parameter) for parameter in kept}
    masks: dict[Tensor, Tensor] = {}
    for flat, fragments in flats.fragments.items():
        mask = torch.zeros_like(flat, dtype=torch.bool)
        for start, stop, parameter in fragments:
            if id(parameter) in chosen:
                mask[start:stop] = flat.detach()[start:stop] == 0
        if bool(mask.any()):
            masks[flat] = mask

    @torch.no_grad()
    def clear(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # ZeRO-3 gives the optimizer one of its flat tensors at a time.
        for flat in (flat for group in optimizer.param_groups for flat in group["params"]):
            if flat in masks:
                flat.detach().masked_fill_(masks[flat], 0)

    return any(ranks.gather(bool(masks))), optimizer.register_step_post_hook(clear)


def zero_gradients_early(kept: Iterable[nn.Parameter], masks: Mapping[nn.Parameter, Tensor]) -> list[RemovableHandle]:
    """Zero the gradients of zero weights before DeepSpeed reduces them, so that clipping does not see them.

    Args:
        kept: the parameters whose zeros are kept.
        masks: the zeros of parameters that are whole; those of ZeRO-3 are whole while gradients are computed.

    Returns:
        The handles of the hooks.
    """

    def hook(parameter: nn.Parameter) -> RemovableHandle:
        def clear(gradient: Tensor) -> Tensor:
            zeros = parameter.detach() == 0 if is_partitioned(parameter) else masks[parameter]
            return gradient.masked_fill(zeros, 0) if zeros.shape == gradient.shape else gradient

        handle: RemovableHandle = parameter.register_hook(clear)
        return handle

    return [hook(parameter) for parameter in kept if is_partitioned(parameter) or parameter in masks]
