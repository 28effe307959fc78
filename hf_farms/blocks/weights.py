"""Where the weight of a layer lies in memory: a plain parameter, a quantised one, or one with adapters on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from hf_farms.blocks.adapters import innermost_base, is_adapted, with_adapters
from hf_farms.blocks.layers import LayerMetadata
from hf_farms.errors import ModelError

__all__ = ["ModuleStore", "count_zeros"]

MERGE_FIRST = "Merge it first: model.merge_and_unload()."


@dataclass(frozen=True)
class ModuleStore:
    """The weight of a module in memory; with adapters what they make of it, which is computed and not stored.

    Attributes:
        module: with its adapters.
        attribute: the parameter of the module under them.
        left_out: adapters that are not in what was read last, with the reason.
    """

    module: nn.Module
    attribute: str
    left_out: list[str] = field(default_factory=list, compare=False)

    def read(self, layer: LayerMetadata) -> Tensor:
        """The layer's part of the parameter."""
        weight = _dequantised(innermost_base(self.module), self.attribute)
        if is_adapted(self.module):
            weight, self.left_out[:] = with_adapters(self.module, weight)
        return layer.part.of(weight)

    def write(self, layer: LayerMetadata, weight: Tensor) -> None:
        """Overwrite the layer's part.

        Raises:
            ModelError: an adapter, whose sum cannot be overwritten.
        """
        if is_adapted(self.module):
            raise ModelError(
                f"weights must be plain to be overwritten, got an adapter in {layer.name}.", hint=MERGE_FIRST
            )
        layer.part.into_(getattr(self.module, self.attribute), weight)


def count_zeros(tensor: Tensor) -> int:
    """How many entries are zero; a pass over them that makes no mask."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        # torch does not count those of float8.
        return int((tensor == 0).sum())
    return tensor.numel() - int(tensor.count_nonzero())


def _dequantised(module: nn.Module, attribute: str) -> Tensor:
    """A whole parameter in a float dtype, by the means of the library that quantised it; others as they are."""
    weight: Any = getattr(module, attribute)
    if hasattr(weight, "full_tensor"):
        # Sharded (FSDP2, tensor parallelism): all processes of the mesh read it together.
        return cast(Tensor, weight.detach().full_tensor())
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        state = getattr(module, "state", None)
        return cast(Tensor, dequantize_bnb_weight(cast(nn.Parameter, weight), state)).detach()
    if weight.is_quantized or (type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize")):
        return cast(Tensor, weight.dequantize().detach())
    return cast(Tensor, weight.detach())
