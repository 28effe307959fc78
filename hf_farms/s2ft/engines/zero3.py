"""Weights and slices that ZeRO-3 of DeepSpeed has partitioned.

Each process keeps an equal part of the elements of a weight, in the order of its memory, and modules are whole only
while they run. Slices are gathered, about 1% of the bytes that a forward pass gathers, and each process writes the
elements of its own part of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.blocks.partitioned import gathered, is_partitioned, is_whole
from hf_farms.errors import ModelError
from hf_farms.s2ft.engines.base import PLAIN, Engine, Slices

__all__ = ["ZERO3"]


class _Zero3:
    name, is_collective, keeps_weights = "ZeRO-3", True, False

    def stores(self, tensor: Tensor) -> bool:
        return is_partitioned(tensor)

    def settle(self, model: nn.Module) -> None:
        pass

    def adopt(self, layer: Slices) -> None:
        # The model was made under zero.Init, which keeps every parameter in parts from the start.
        layer.weight.convert_to_zero_parameters(param_list=[layer.selected])

    def whole(self, tensor: Tensor) -> Tensor:
        with gathered([tensor]):
            return tensor.detach().clone() if is_partitioned(tensor) else tensor.detach()

    def slice_of_weight(self, layer: Slices) -> Tensor:
        with gathered([layer.weight]):
            return PLAIN.slice_of_weight(layer)

    def write(self, layer: Slices, values: Tensor, weight: Tensor) -> None:
        whole = self.whole(values)
        if not is_partitioned(weight) or is_whole(weight):
            PLAIN.write(layer, whole, weight)
        if is_partitioned(weight):
            own, start = _own_part(weight)
            positions, part = _selected_elements(layer, whole, weight, start, start + len(own))
            own[positions.to(own.device)] = part.to(own)

    def fill(self, layer: Slices, values: Tensor) -> None:
        # DeepSpeed's own checkpoint has the slices, in the float32 copies of its optimizer.
        pass

    def like_slice(self, layer: Slices, values: Tensor) -> Tensor:
        return values

    def of_first(self, layer: Slices, values: Tensor) -> Tensor:
        return values


ZERO3: Engine = _Zero3()


def _own_part(weight: Any) -> tuple[Tensor, int]:
    """Return this process's elements of a weight, which share its memory, and the position of the first.

    Raises:
        ModelError: the elements are elsewhere too, or not in memory.
    """
    part = weight.ds_tensor
    found = None
    if part.dtype != weight.dtype:
        found = f"weights that are stored as {part.dtype} (zero_quantized_nontrainable_weights)"
    elif getattr(weight, "ds_secondary_tensor", None) is not None:
        found = "second copies of weights (zero_hpz_partition_size)"
    elif part.numel() != part.ds_numel:
        found = "weights on a disk (offload_param to nvme)"
    if found is not None:
        raise ModelError(
            f"weights must be kept once, in memory and in their own dtype for S2FT under ZeRO-3, got {found}.",
            hint="Remove that entry from the config of DeepSpeed.",
        )
    return part.detach().view(-1), torch.distributed.get_rank(weight.ds_process_group) * part.numel()


def _selected_elements(layer: Slices, whole: Tensor, weight: Any, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return the values of the slice between two elements of the stored weight, and their positions from the first."""
    rows, columns = weight.ds_shape
    first, last = start // columns, min(rows, -(-stop // columns))
    values, channels = whole.mT if layer.s2ft_transposed else whole, layer.s2ft_channels
    if layer.s2ft_inputs != layer.s2ft_transposed:
        values = values[first:last]
        positions = torch.arange(first, last)[:, None] * columns + channels
    else:
        inside = ((channels >= first) & (channels < last)).nonzero().flatten()
        values = values.index_select(0, inside.to(values.device))
        positions = channels[inside][:, None] * columns + torch.arange(columns)
    mask = (positions >= start) & (positions < stop)
    return positions[mask] - start, values[mask.to(values.device)]
