"""Read and write layer weights in memory: plain, sharded, quantized, or with PEFT adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from hf_farms.blocks.adapters import innermost_base, is_adapted, with_adapters
from hf_farms.blocks.layers import LayerMetadata
from hf_farms.blocks.partitioned import gathered, is_partitioned
from hf_farms.errors import ModelError

__all__ = ["ModuleStore", "count_zeros"]

MERGE_FIRST = "Merge it first: model.merge_and_unload()."


@dataclass(frozen=True)
class ModuleStore:
    """Weight of a module in memory. With adapters, `read` computes the effective weight, and `write` is refused.

    Attributes:
        module: the module, including its adapters.
        attribute: name of the parameter on the module under the adapters.
        left_out: adapters that were not applied in the last `read`, each with the reason.
    """

    module: nn.Module
    attribute: str
    left_out: list[str] = field(default_factory=list, compare=False)

    def read(self, layer: LayerMetadata) -> Tensor:
        """Read the layer's part of the parameter, dequantized, with adapters applied."""
        base = innermost_base(self.module)
        # Of a module with adapters those are read too.
        own = self.module.parameters() if is_adapted(self.module) else [getattr(base, self.attribute)]
        partitioned = [parameter for parameter in own if is_partitioned(parameter)]
        with gathered(partitioned):
            weight = _dequantized(base, self.attribute)
            if is_adapted(self.module):
                weight, self.left_out[:] = with_adapters(self.module, weight)
            weight = layer.part.of(weight)
            # The gathered weight ends with the context.
            return weight.clone() if partitioned else weight

    def write(self, layer: LayerMetadata, weight: Tensor) -> None:
        """Overwrite the layer's part.

        Raises:
            ModelError: the module has an adapter, or its weight is sharded.
        """
        if is_adapted(self.module):
            raise ModelError(
                f"weights must have no adapter to be overwritten, got one in {layer.name}.", hint=MERGE_FIRST
            )
        parameter = getattr(self.module, self.attribute)
        if hasattr(parameter, "full_tensor") or is_partitioned(parameter):
            raise ModelError(
                f"weights must be whole on every process to be overwritten, got a sharded one in {layer.name}.",
                hint="Load the model without sharding it (FSDP2, ZeRO-3, tensor parallelism), and shard it afterwards.",
            )
        layer.part.into_(parameter, weight)


def count_zeros(tensor: Tensor) -> int:
    """Count the entries that are zero, in one pass without a mask tensor."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        # count_nonzero does not support float8.
        return int((tensor == 0).sum())
    return tensor.numel() - int(tensor.count_nonzero())


def _dequantized(module: nn.Module, attribute: str) -> Tensor:
    """Return a whole parameter: gathered if sharded, dequantized by its library if quantized."""
    weight: Any = getattr(module, attribute)
    if hasattr(weight, "full_tensor"):
        # Sharded (FSDP2, tensor parallelism): a collective operation, all processes of the mesh take part.
        return cast(Tensor, weight.detach().full_tensor())
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        state = getattr(module, "state", None)
        return cast(Tensor, dequantize_bnb_weight(cast(nn.Parameter, weight), state)).detach()
    if weight.is_quantized or (type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize")):
        return cast(Tensor, weight.dequantize().detach())
    return cast(Tensor, weight.detach())
