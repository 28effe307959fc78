"""The interface of a training engine, and the one of weights that are whole on every process.

Symbols: m outputs, n inputs, s selected channels; weight (m, n), Conv1D of transformers (n, m).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["PLAIN", "Engine", "Slices", "as_matrix"]


class Slices(Protocol):
    """A layer with trained channels, as engines see it; see `layers.SelectiveLayer`.

    Attributes:
        weight: the parameter that the engine stores.
        selected: `(m, s)` or `(s, n)`, the trained slice, a parameter that the engine stores too.
        s2ft_inputs: whether the channels are inputs.
        s2ft_channels: `(s,)` int64 on the CPU.
        s2ft_orders: of a permuted layer.
    """

    weight: Any
    selected: Any
    s2ft_inputs: bool
    s2ft_channels: Tensor
    s2ft_orders: Any

    @property
    def s2ft_transposed(self) -> bool:
        """Whether the weight is stored as `(n, m)`."""

    def s2ft_index_on(self, device: torch.device) -> Tensor:
        """Return the channels on a device."""


class Engine(Protocol):
    """How weights and slices are stored.

    Attributes:
        name: for messages.
        is_collective: whether `whole`, `slice_of_weight` and `write` need all processes.
        keeps_weights: whether a view of the weight in the forward pass has the weight in the backward pass too.
    """

    name: str
    is_collective: bool
    keeps_weights: bool

    def stores(self, tensor: Tensor) -> bool:
        """Return whether a parameter is stored by this engine."""

    def settle(self, model: nn.Module) -> None:
        """Give the modules of a model their stored parameters back, where a forward pass has replaced them."""

    def adopt(self, layer: Slices) -> None:
        """Store a new, whole slice in the way of the weight."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a parameter, or a tensor stored like one, as a whole."""

    def slice_of_weight(self, layer: Slices) -> Tensor:
        """Return a copy of the selected part of the weight, stored like the slice, in the dtype of the weight."""

    def write(self, layer: Slices, values: Tensor, weight: Tensor) -> None:
        """Write values that are stored like the slice into a tensor that is stored like the weight, in place."""

    def fill(self, layer: Slices, values: Tensor) -> None:
        """Copy values, whole or stored like the slice, into the slice."""

    def like_slice(self, layer: Slices, values: Tensor) -> Tensor:
        """Return a whole tensor, the same on every process, in the form that a checkpoint stores with the slice."""

    def of_first(self, layer: Slices, values: Tensor) -> Tensor:
        """Return the first process's whole tensor, on the CPU."""


def as_matrix(layer: Slices, weight: Tensor) -> Tensor:
    """Return a view of a weight as `(m, n)`."""
    weight = weight.detach()
    return weight.mT if layer.s2ft_transposed else weight


class _Plain:
    name, is_collective, keeps_weights = "weights that are whole on every process", False, True

    def stores(self, tensor: Tensor) -> bool:
        return True

    def settle(self, model: nn.Module) -> None:
        pass

    def adopt(self, layer: Slices) -> None:
        pass

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.detach()

    def slice_of_weight(self, layer: Slices) -> Tensor:
        matrix = as_matrix(layer, layer.weight)
        return matrix.index_select(int(layer.s2ft_inputs), layer.s2ft_index_on(matrix.device))

    def write(self, layer: Slices, values: Tensor, weight: Tensor) -> None:
        matrix = as_matrix(layer, weight)
        index = layer.s2ft_index_on(matrix.device)
        matrix.index_copy_(int(layer.s2ft_inputs), index, values.detach().to(matrix))

    def fill(self, layer: Slices, values: Tensor) -> None:
        layer.selected.detach().copy_(values)

    def like_slice(self, layer: Slices, values: Tensor) -> Tensor:
        return values

    def of_first(self, layer: Slices, values: Tensor) -> Tensor:
        return values


PLAIN: Engine = _Plain()
