"""Fine-tune a pruned model and keep its zeros."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.adapters import is_adapted
from hf_farms.blocks.partitioned import is_partitioned, is_sharded
from hf_farms.callbacks.compatibility import check_not_fsdp1, check_one_engine, require_step_hooks
from hf_farms.callbacks.lora_masks import mask_lora
from hf_farms.callbacks.trainer import unwrap_optimizer, uses_deepspeed, uses_fsdp
from hf_farms.callbacks.zero_masks import hook_flat_masks, steps_on_copies, zero_gradients_early
from hf_farms.errors import NoEffectWarning
from hf_farms.processes import launched_ranks
from hf_farms.s2ft.engines import local, settle
from hf_farms.s2ft.surgery import selective_layers

__all__ = ["KeepZerosCallback"]

NAME = "KeepZerosCallback"


class KeepZerosCallback(TrainerCallback):
    """Keep the weights of the blocks zero that are zero at the start of the training.

    Use it as `Trainer(..., callbacks=[KeepZerosCallback()])` or `trainer.add_callback(...)`, for full fine-tuning,
    together with S2FTCallback (place it after that one), or for LoRA adapters of PEFT; the first two under FSDP2 and
    DeepSpeed too, adapters not where weights are sharded (FSDP, ZeRO-3).
    The gradients of these weights are zeroed too, so that they affect neither gradient clipping nor the optimizer's
    moments. Patterns such as 2:4 are preserved.

    LoRA: the update B @ A of each adapted layer is masked, in training and afterwards, so that
    `model.merge_and_unload()` keeps every zero. An adapter that is loaded from a file needs `mask_lora(model)` before
    it is used or merged, as files of adapters do not hold the mask.

    Memory: one byte for every trained or adapted weight of the blocks. Time: one pass over gradients and weights in
    each step; adapted layers need about 2.5 times the products of plain LoRA (see `mask_lora`).

    Raises:
        ValueError: at the start of the training, with adapters whose update cannot be masked (see `mask_lora`), LoRA
            under FSDP or ZeRO-3, FSDP1, or an optimizer that updates weights outside its step.
    """

    def __init__(self) -> None:
        self._masks: dict[nn.Parameter, Tensor] = {}
        self._hooks: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the zeros and register the hooks."""
        check_one_engine(args, NAME)
        require_step_hooks(args, NAME)
        model = kwargs["model"]
        check_not_fsdp1(model, NAME)
        self._release()
        masked = _mask_adapters(model, args)
        optimizer = unwrap_optimizer(kwargs["optimizer"])
        kept = _kept_parameters(model)
        if uses_deepspeed(args) and steps_on_copies(optimizer, model):
            found, hook = hook_flat_masks(kwargs["optimizer"], optimizer, model, kept, name=NAME)
            self._hooks = [*zero_gradients_early(kept, _zero_masks(kept)), hook]
        else:
            self._masks = _zero_masks(kept)
            found = _anywhere(bool(self._masks), model)
            self._hooks = [p.register_post_accumulate_grad_hook(self._clear_gradient) for p in self._masks]
            # The slices of S2FT are written to their weights after this, by a global hook.
            self._hooks.append(optimizer.register_step_post_hook(self._clear_weights))
        if not masked and not found:
            warnings.warn(
                f"{NAME} has no effect: no trained or adapted weight in the blocks of the model is 0.",
                NoEffectWarning,
                stacklevel=2,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the hooks and free the masks; adapted layers stay masked, so that merging keeps the zeros."""
        self._release()

    def _clear_gradient(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        if parameter.grad is not None:
            local(parameter.grad).masked_fill_(self._masks[parameter], 0)

    @torch.no_grad()
    def _clear_weights(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Zero the weights again: optimizers such as Muon change a weight whose gradient is 0."""
        for parameter, mask in self._masks.items():
            local(parameter.detach()).masked_fill_(mask, 0)

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._masks = [], {}


def _mask_adapters(model: nn.Module, args: TrainingArguments) -> int:
    """Mask the updates of adapters; return the number of layers."""
    if not any(is_adapted(module) for module in model.modules()):
        return 0
    if uses_fsdp(args) or is_sharded(model):
        engine = "ZeRO-3" if uses_deepspeed(args) else "FSDP"
        raise ValueError(
            f"weights must be whole on every process for {NAME} with adapters, got {engine}. Use DDP, ZeRO-2, or one "
            "process."
        )
    return mask_lora(model)


def _anywhere(found: bool, model: nn.Module) -> bool:
    """Return whether something is found in this process's part of a model or, if it is sharded, in another one."""
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return any(launched_ranks().gather(found)) if sharded else found


def _kept_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters whose zeros are kept: the layers of the blocks, for S2FT the slices."""
    settle(model)
    source = ModelBlockSource(model)
    names = {layer.parameter for index in range(len(source)) for layer in source.metadata(index).layers}
    parameters = [source.model.get_parameter(name) for name in sorted(names)]
    parameters += [layer.selected for _, layer in selective_layers(model)]
    return [parameter for parameter in parameters if parameter.requires_grad]


def _zero_masks(kept: Sequence[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Return masks of the zeros in these parameters.

    Under FSDP2 a mask is that of this process's part; weights that ZeRO-3 has partitioned are left out.
    """
    masks = {p: local(p.detach()) == 0 for p in kept if not is_partitioned(p)}
    return {parameter: mask for parameter, mask in masks.items() if bool(mask.any())}
