"""Channels of one matrix with their values: what a merge writes, and what it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_farms.s2ft.base_slices import put, same_bits, take

__all__ = ["Channels", "sampled"]

# Entries of a channel that show a write which torch does not count: of fused optimizers, and through `.data`. They
# change most entries.
LOOKED_AT = 8


@dataclass(frozen=True)
class Channels:
    """Channels of a matrix `(m, n)`, on its device.

    Attributes:
        dim: dimension of the matrix that `indices` counts.
        indices: `(s,)` int64, unique.
        values: `(s, n)` or `(m, s)`, in the dtype of the matrix.
    """

    dim: int
    indices: Tensor
    values: Tensor

    def read(self, matrix: Tensor) -> Tensor:
        """Return a copy of these channels of a matrix as they are."""
        return take(matrix, self.dim, self.indices)

    def write(self, matrix: Tensor) -> None:
        """Write the values into a matrix."""
        put(matrix, self.dim, self.indices, self.values)

    def are_in(self, matrix: Tensor, *, whole: bool = True) -> bool:
        """Return whether a matrix has these values, bit for bit; in a few entries of each channel if not `whole`."""
        if whole:
            return same_bits(self.read(matrix), self.values)
        some = _some(matrix.shape, self.dim)
        return same_bits(sampled(matrix, self.dim, self.indices), self.values[some])

    def same_place(self, other: Channels) -> bool:
        """Return whether both are the same channels."""
        return self.dim == other.dim and torch.equal(self.indices, other.indices)

    def over(self, other: Channels) -> Channels:
        """Return the channels of both, of one dimension, with the own values where they overlap."""
        at = self._places_in(other)
        if len(at) == len(other.indices):
            return self
        kept, values = other.indices, other.values
        if len(at):
            rest = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
            rest[at] = False
            kept, values = kept[rest], take(values, self.dim, rest.nonzero().flatten())
        return Channels(self.dim, torch.cat([self.indices, kept]), torch.cat([self.values, values], self.dim))

    def updated(self, other: Channels) -> Channels:
        """Return these channels with the values of another, on either dimension, where they cross or overlap."""
        if other.dim != self.dim:
            crossing = other.values.index_select(self.dim, self.indices)
            return Channels(self.dim, self.indices, self.values.index_copy(other.dim, other.indices, crossing))
        at = self._places_in(other)
        position = torch.searchsorted(self.indices, other.indices[at])
        values = self.values.index_copy(self.dim, position, other.values.index_select(self.dim, at))
        return Channels(self.dim, self.indices, values)

    def _places_in(self, other: Channels) -> Tensor:
        """Return the places in `other.indices` of the channels that both have; own indices must be ascending."""
        position = torch.searchsorted(self.indices, other.indices).clamp(max=len(self.indices) - 1)
        return (self.indices[position] == other.indices).nonzero().flatten()


def sampled(matrix: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Return a few entries of each of these channels of a matrix."""
    return take(matrix.detach()[_some(matrix.shape, dim)], dim, indices)


def _some(shape: Sequence[int], dim: int) -> tuple[slice, slice]:
    """Return the entries that are looked at, as an index of the matrix or of its channels."""
    some = slice(None, None, max(1, shape[1 - dim] // LOOKED_AT))
    return (slice(None), some) if dim == 0 else (some, slice(None))
