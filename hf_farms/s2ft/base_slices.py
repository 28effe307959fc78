"""The base slices of a training: the trained channels as they were before it, which write-back destroys.

They belong to the model: `apply_s2ft` keeps them on the CPU in the dtype of the weights, `restore` leaves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hf_farms.blocks.coupling import undo_orders
from hf_farms.blocks.wrappers import plain_name, unwrapped
from hf_farms.s2ft.engines import one_engine
from hf_farms.s2ft.layers import SelectiveLayer
from hf_farms.s2ft.selection import Selection

__all__ = [
    "KEPT",
    "MERGED",
    "KeptBase",
    "StoredSlice",
    "bits",
    "put",
    "same_bits",
    "slice_as_stored",
    "slices_as_stored",
    "take",
]

# Attribute of a model that was restored, with the base of its training.
KEPT = "_hf_farms_base_slices"
# Attribute of a model with an adapter merged into it: the replaced slices by name of the parameter.
MERGED = "_hf_farms_merged_adapter"
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class StoredSlice:
    """Channels of a parameter, in the order and orientation of a checkpoint.

    Attributes:
        side: whether the channels are inputs or outputs.
        dim: dimension of the stored parameter that `indices` counts.
        indices: `(s,)` int64, ascending.
        values: `(s, n)` or `(m, s)`, on the CPU, in the dtype of the weight.
    """

    side: Literal["inputs", "outputs"]
    dim: int
    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class KeptBase:
    """The base of a training that `restore` has ended.

    Attributes:
        selection: that was trained.
        slices: by name of the parameter.
        is_original: False if the weights contained an earlier training, so that they are not those of a published
            base.
    """

    selection: Selection
    slices: dict[str, StoredSlice]
    is_original: bool = True


def slices_as_stored(model: nn.Module) -> dict[str, StoredSlice]:
    """Return the trained slices of a model with S2FT on it, by name of the parameter, as a checkpoint stores them.

    Where an engine shards them, all processes must call this.
    """
    one_engine(model)
    return {
        f"{plain_name(name)}.weight": slice_as_stored(module)
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, SelectiveLayer)
    }


def slice_as_stored(layer: SelectiveLayer) -> StoredSlice:
    """Return the trained slice of a layer, rounded to the dtype of its weight, in the original order."""
    transposed = layer.s2ft_transposed
    values = layer.engine.whole(layer.selected).to(layer.weight.dtype).cpu()
    values = values.mT if transposed else values
    dim = int(layer.s2ft_inputs != transposed)
    orders = {key: order.cpu() for key, order in layer.s2ft_orders.get("weight", {}).items()}
    channels = layer.s2ft_channels if dim not in orders else orders[dim][layer.s2ft_channels]
    values = undo_orders(values, {key: order for key, order in orders.items() if key != dim})
    order = channels.argsort()
    return StoredSlice(
        "inputs" if layer.s2ft_inputs else "outputs",
        dim,
        channels[order],
        values.index_select(dim, order).contiguous(),
    )


def take(parameter: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Return a copy of these channels of a matrix, on its device."""
    matrix, indices = parameter.detach(), indices.to(parameter.device)
    if dim == 0:
        return matrix.index_select(0, indices)
    return _integers(matrix).gather(1, indices.expand(len(matrix), -1)).view(matrix.dtype)


@torch.no_grad()
def put(parameter: Tensor, dim: int, indices: Tensor, values: Tensor) -> None:
    """Write these channels of a matrix, in place."""
    matrix, indices, values = parameter.detach(), indices.to(parameter.device), values.to(parameter.device)
    if dim == 0:
        matrix.index_copy_(0, indices, values)
    else:
        # Half the time of index_copy_ on a CPU, and of index_select above.
        _integers(matrix).scatter_(1, indices.expand(len(matrix), -1), _integers(values))


def _integers(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS.get(tensor.dtype.itemsize, torch.uint8))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one dtype and shape have the same bits: NaN equals itself, and 0 is not -0."""
    return torch.equal(bits(one), bits(other))


def bits(tensor: Tensor) -> Tensor:
    """Return a tensor's bits as integers of its size, `(entries,)`."""
    return tensor.contiguous().reshape(-1).view(INTEGERS.get(tensor.dtype.itemsize, torch.uint8))
