"""Weights and slices that FSDP2 (`fully_shard`) has sharded by rows.

A slice `(m, s)` of an `nn.Linear` is divided among the processes like its weight `(m, n)`, also where the rows do not
divide evenly, so that each process writes its own rows and nothing is sent. Other slices are gathered, about 1% of the
bytes that a forward pass gathers.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.errors import ModelError
from hf_farms.s2ft.engines.base import Engine, Slices, as_matrix

__all__ = ["FSDP2", "local"]


class _FSDP2:
    name, is_collective, keeps_weights = "FSDP2", True, True

    def stores(self, tensor: Tensor) -> bool:
        return hasattr(tensor, "full_tensor")

    def settle(self, model: nn.Module) -> None:
        # With reshard_after_forward=False, modules have whole parameters after a forward pass without a backward one
        # (an evaluation), in the dtype of the computation.
        fsdp: Any = sys.modules.get("torch.distributed.fsdp")
        for module in model.modules() if fsdp is not None else ():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()

    def adopt(self, layer: Slices) -> None:
        raise NotImplementedError("slices are made before FSDP2 shards the weights")

    def whole(self, tensor: Tensor) -> Tensor:
        if not self.stores(tensor):
            return tensor.detach()
        sharded: Any = tensor.detach()
        part, device = sharded.to_local(), sharded.device_mesh.device_type
        if part.device.type != device:
            # Offloaded to the CPU, whose tensors the process group may not be able to send.
            sharded = _sharded(sharded, part.to(device), sharded.shape)
        full: Tensor = sharded.full_tensor()
        return full

    def slice_of_weight(self, layer: Slices) -> Tensor:
        weight, dim = layer.weight.detach(), int(layer.s2ft_inputs)
        if layer.s2ft_inputs and not layer.s2ft_transposed:
            part = weight.to_local()
            part = part.index_select(dim, layer.s2ft_index_on(part.device))
            return _sharded(weight, part, (len(weight), part.shape[1]))
        # For loading only, one weight at a time.
        whole = as_matrix(layer, self.whole(weight))
        return self.like_slice(layer, whole.index_select(dim, layer.s2ft_index_on(whole.device)))

    def write(self, layer: Slices, values: Tensor, weight: Tensor) -> None:
        _check_order(layer)
        start, stop = _own_rows(weight)
        part: Any = values.detach()
        own = as_matrix(layer, local(weight.detach()))
        dim, index = int(layer.s2ft_inputs), layer.s2ft_index_on(own.device)
        if layer.s2ft_inputs and not layer.s2ft_transposed:
            part = local(part)
        elif layer.s2ft_inputs == layer.s2ft_transposed:
            # The channels are the rows of the stored weight.
            inside = ((layer.s2ft_channels >= start) & (layer.s2ft_channels < stop)).nonzero().flatten()
            whole = self.whole(part)
            part = whole.index_select(dim, inside.to(whole.device))
            index = (layer.s2ft_channels[inside] - start).to(own.device)
        else:
            part = self.whole(part)[:, start:stop]
        own.index_copy_(dim, index, part.to(own))

    def fill(self, layer: Slices, values: Tensor) -> None:
        selected = layer.selected.detach()
        values = values if self.stores(values) else self.like_slice(layer, values)
        local(selected).copy_(local(values))

    def like_slice(self, layer: Slices, values: Tensor) -> Tensor:
        weight = layer.weight
        dim = _sharded_dim(weight)
        chunk = -(-len(values) // weight.device_mesh.size(dim))
        start = chunk * weight.device_mesh.get_local_rank(dim)
        part = values.detach()[start : start + chunk].to(local(weight).device, copy=True).contiguous()
        return _sharded(weight, part, values.shape)

    def of_first(self, layer: Slices, values: Tensor) -> Tensor:
        sent = values.to(layer.weight.device_mesh.device_type, copy=True).contiguous()
        torch.distributed.broadcast(sent, src=0)
        return sent.cpu()


FSDP2: Engine = _FSDP2()


def local(tensor: Any) -> Tensor:
    """Return this process's part of a tensor, which shares its memory; a whole tensor as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _sharded(like: Any, part: Tensor, shape: Any) -> Tensor:
    """Return a tensor of this shape, divided like another one, of the parts of all processes."""
    from torch.distributed.tensor import DTensor

    shape = torch.Size(shape)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=(shape[1], 1)
    )


def _sharded_dim(tensor: Any) -> int:
    """Return the dimension of the mesh over which the rows of a tensor are divided.

    Raises:
        ModelError: it is divided in another way, as tensor parallelism does.
    """
    dims = [dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if len(dims) == 1 and tensor.placements[dims[0]].is_shard(0):
        return dims[0]
    raise ModelError(
        f"weights must be sharded by rows over one dimension of the mesh for S2FT, got {tensor.placements}.",
        hint="Shard with FSDP2 alone, without tensor parallelism and without shard_placement_fn.",
    )


def _own_rows(tensor: Any) -> tuple[int, int]:
    """Return the first of this process's rows, and the one after the last; FSDP2 divides as `torch.chunk` does."""
    dim, rows = _sharded_dim(tensor), len(tensor)
    chunk = -(-rows // tensor.device_mesh.size(dim))
    start = min(chunk * tensor.device_mesh.get_local_rank(dim), rows)
    return start, min(start + chunk, rows)


def _check_order(layer: Slices) -> None:
    if layer.s2ft_orders:
        raise ModelError(
            "layout must be 'indexed' for S2FT under FSDP2, got 'permuted', whose order is undone on whole weights.",
            hint="Pass S2FTConfig(layout='indexed').",
        )
