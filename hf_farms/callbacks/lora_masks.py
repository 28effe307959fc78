"""Mask the updates of LoRA adapters, so that the zeros of a pruned model stay. PEFT itself is never imported."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.adapters import innermost_base, is_adapted

__all__ = ["mask_lora"]

# Attribute of a masked layer: `(out, in)` bool, the zeros of its weight. No buffer, because DDP broadcasts those.
ZEROS = "_hf_farms_zeros"


def mask_lora(model: nn.Module) -> int:
    """Keep the zeros of a pruned model under its LoRA adapters, in the forward pass and when they are merged.

    The update of each adapted linear layer of the blocks becomes `mask * (B @ A) * scaling`, for all adapters that the
    layer has or gets later. `merge_adapter`, `unmerge_adapter` and `merge_and_unload` of PEFT then keep every zero
    exactly. Files of adapters do not hold the mask: call this function again after loading one, before the model is
    used or merged. Calling it twice changes nothing.

    Time: B and A are multiplied to a matrix of the size of the weight in each forward pass, and a training step has
    five matrix products of the size of the layer's own, where plain LoRA has two. Memory: one byte for each weight, and
    the masked update of each layer until its backward pass (with gradient checkpointing, those of one block).

    Args:
        model: a `PeftModel`, or a model with LoRA layers; modified in place.

    Returns:
        The number of layers that are masked.

    Raises:
        ValueError: a layer with zeros has adapters that cannot be masked (DoRA and other variants, adapters other than
            LoRA, quantized weights, convolutions), or merged ones.
        ModelError: adapters on the parameters of experts (`target_parameters`).
    """
    layers = _adapted_layers(model)
    for name, layer in layers.items():
        _check(name, layer)
    for layer in layers.values():
        if ZEROS not in vars(layer):
            vars(layer)[ZEROS] = layer.get_base_layer().weight.detach() == 0
            layer.__class__ = _masked_class(cast(Hashable, type(layer)))
    return len(layers)


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the adapter layers over weights of the blocks that have zeros, by name."""
    source = ModelBlockSource(model)
    names = {layer.parameter for index in range(len(source)) for layer in source.metadata(index).layers}
    # By identity: a weight may be tied to several layers, each with its own adapter.
    with_zeros = [source.model.get_parameter(name) for name in names]
    chosen = {id(weight) for weight in with_zeros if bool((weight.detach() == 0).any())}
    layers: dict[str, Any] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if is_adapted(module) and id(module) not in inside:
            inside |= {id(inner) for inner in module.modules()}
            if any(id(parameter) in chosen for parameter in innermost_base(module).parameters()):
                layers[name] = module
    return layers


def _check(name: str, layer: Any) -> None:
    kind = type(layer) if ZEROS not in vars(layer) else type(layer).__bases__[0]
    base = layer.base_layer
    plain = (kind.__module__, kind.__name__) == ("peft.tuners.lora.layer", "Linear")
    if not plain or is_adapted(base) or not base.weight.is_floating_point():
        raise ValueError(
            f"adapters of a pruned model must be LoRA of linear layers that are not quantized, got {kind.__name__} of "
            f"{kind.__module__} over {type(base).__name__} in {name}. Leave this layer out of `target_modules`."
        )
    if variants := sorted(set(getattr(layer, "lora_variant", ()))):
        variant = type(layer.lora_variant[variants[0]]).__name__
        raise ValueError(
            f"adapters of a pruned model must be plain LoRA, got {variant} in {name}, whose update is no masked "
            "product. Set use_dora=False, and no other variant."
        )
    if layer.merged:
        raise ValueError(
            f"adapters of a pruned model must not be merged yet, got merged ones in {name}. Call "
            "model.unmerge_adapter(), or load the model again."
        )
    if "forward" in vars(layer):
        raise ValueError(
            f"adapted layers of a pruned model must have the forward of their class, got another one in {name}. Load "
            "the model without device_map, and use no X-LoRA."
        )


@cache
def _masked_class(kind: Any) -> type:
    """Return a subclass of PEFT's LoRA layer with masked updates."""

    def get_delta_weight(self: Any, adapter: str) -> Tensor:
        """Return the masked update; PEFT merges and unmerges it."""
        delta: Tensor = kind.get_delta_weight(self, adapter)
        zeros = vars(self)[ZEROS]
        if zeros.device != delta.device:
            zeros = vars(self)[ZEROS] = zeros.to(delta.device)
        return delta.masked_fill(zeros, 0)

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the base layer plus that of the masked updates of the active adapters."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names must be None for masked LoRA layers, got adapters for each sample. Activate one adapter "
                "at a time with set_adapter."
            )
        if self.disable_adapters or self.merged:
            return kind.forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
        kwargs.pop("adapter_names", None)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.lora_A:
                inputs = self.lora_dropout[name](self._cast_input_dtype(x, self.lora_A[name].weight.dtype))
                delta, bias = self.get_delta_weight(name), self.lora_B[name].bias
                if self.fan_in_fan_out:
                    delta = delta.mT
                result = result + functional.linear(inputs, delta, None if bias is None else bias * self.scaling[name])
        return result.to(dtype)

    # The module tells the kind of the adapter to whoever looks for it.
    members = {"__module__": kind.__module__, "get_delta_weight": get_delta_weight, "forward": forward}
    return type(f"Masked{kind.__name__}", (kind,), members)
