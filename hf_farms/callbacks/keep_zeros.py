"""Fine-tune a pruned model and keep its zeros."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks.compatibility import require_step_hooks
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.errors import NoEffectWarning
from hf_farms.s2ft.surgery import selective_layers

__all__ = ["KeepZerosCallback"]

NAME = "KeepZerosCallback"


class KeepZerosCallback(TrainerCallback):
    """Keep the weights of the blocks zero that are zero at the start of the training.

    Use it as `Trainer(..., callbacks=[KeepZerosCallback()])` or `trainer.add_callback(...)`, for full fine-tuning or
    together with S2FTCallback (place it after that one). The gradients of these weights are zeroed too, so that they
    affect neither gradient clipping nor the optimizer's moments. Patterns such as 2:4 are preserved.

    Memory: one byte for every trained weight of the blocks. Time: one pass over gradients and weights in each step.

    Raises:
        ValueError: at the start of the training, with adapters, which fill the zeros when they are merged, or with an
            optimizer that updates weights outside its step.
    """

    def __init__(self) -> None:
        self._masks: dict[nn.Parameter, Tensor] = {}
        self._hooks: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the zeros and register the hooks."""
        require_step_hooks(args, NAME)
        model = kwargs["model"]
        if any(hasattr(module, "base_layer") for module in model.modules()):
            raise ValueError(
                f"model must be without adapters for {NAME}, got some, which fill zeros when they are merged. Train "
                "the model itself, or a part of it with S2FTCallback."
            )
        self._release()
        self._masks = _zero_masks(model)
        if not self._masks:
            warnings.warn(
                f"{NAME} has no effect: no trained weight in the blocks of the model is 0.",
                NoEffectWarning,
                stacklevel=2,
            )
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._clear_gradient) for parameter in self._masks]
        # The slices of S2FT are written to their weights after this, by a global hook.
        self._hooks.append(unwrap_optimizer(kwargs["optimizer"]).register_step_post_hook(self._clear_weights))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the hooks and free the masks."""
        self._release()

    def _clear_gradient(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        if parameter.grad is not None:
            parameter.grad.masked_fill_(self._masks[parameter], 0)

    @torch.no_grad()
    def _clear_weights(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Zero the weights again: optimizers such as Muon change a weight whose gradient is 0."""
        for parameter, mask in self._masks.items():
            parameter.masked_fill_(mask, 0)

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._masks = [], {}


def _zero_masks(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Return masks of the zeros in the trained weights of the blocks, for S2FT in the slices."""
    source = ModelBlockSource(model)
    names = {layer.parameter for index in range(len(source)) for layer in source.metadata(index).layers}
    parameters = [source.model.get_parameter(name) for name in sorted(names)]
    parameters += [layer.selected for _, layer in selective_layers(model)]
    masks = {parameter: parameter.detach() == 0 for parameter in parameters if parameter.requires_grad}
    return {parameter: mask for parameter, mask in masks.items() if bool(mask.any())}
