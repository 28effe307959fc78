"""Products of a batch whose samples have different adapters: gather, one batched product, add.

Symbols: a adapters of a stack, s channels of each (the largest number; the others are padded), b samples, t rows of a
sample, g groups of c samples with the same adapter, n inputs and m outputs of the layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_farms.s2ft.adapters.patches import Side

__all__ = ["Groups", "Products", "Stack", "group_samples"]


@dataclass(frozen=True)
class Groups:
    """Samples of a batch, in groups of equal size with one adapter each. Samples without an adapter are in none.

    Attributes:
        samples: b, of the whole batch.
        rows: `(g,)`, the row of the stack for each group.
        places: `(g * c,)`, sample of each place; the end of a group may be padded with its first sample.
        kept: places that are no padding; None if all are.
        span: the samples from start to stop, if `places` counts through them.
    """

    samples: int
    rows: Tensor
    places: Tensor
    kept: Tensor | None
    span: slice | None


def group_samples(rows: Sequence[int | None], device: torch.device) -> Groups | None:
    """Group the samples of a batch by adapter, for one batched product.

    The size of a group is the mean number of samples of an adapter, so there are at most twice as many groups as
    adapters and at most twice as many places as samples, however the samples are distributed.

    Args:
        rows: for each sample the row of the stack, or None.
        device: of the result.

    Returns:
        The groups in the order of their first samples; None if no sample has an adapter.
    """
    samples: dict[int, list[int]] = defaultdict(list)
    for sample, row in enumerate(rows):
        if row is not None:
            samples[row].append(sample)
    if not samples:
        return None
    size = -(-sum(map(len, samples.values())) // len(samples))
    groups = [(row, own[i : i + size]) for row, own in samples.items() for i in range(0, len(own), size)]
    places = [sample for _, own in groups for sample in own + own[:1] * (size - len(own))]
    kept = [i * size + j for i, (_, own) in enumerate(groups) for j in range(len(own))]
    start, stop = places[0], places[0] + len(places)
    return Groups(
        samples=len(rows),
        rows=torch.tensor([row for row, _ in groups], device=device),
        places=torch.tensor(places, device=device),
        kept=None if len(kept) == len(places) else torch.tensor(kept, device=device),
        span=slice(start, stop) if places == list(range(start, stop)) else None,
    )


@dataclass(frozen=True)
class Stack:
    """Differences of all adapters that change one weight on one side.

    Attributes:
        side: of the channels.
        adapters: position of the adapter of each row.
        index: `(a, s)` int64; channels of the adapter, then unused ones as padding, so that no channel occurs twice.
        deltas: `(a, s, m)` for inputs, `(a, s, n)` for outputs; 0 in the padding.
    """

    side: Side
    adapters: tuple[int, ...]
    index: Tensor
    deltas: Tensor

    def to(self, device: torch.device) -> Stack:
        """Return the stack on a device; itself if it is there."""
        if self.index.device == device:
            return self
        return replace(self, index=self.index.to(device), deltas=self.deltas.to(device))

    def products(self, groups: Groups) -> Products:
        """Return the products of a batch. The rows are copied once here, unless they follow one another."""
        rows = groups.rows.tolist()
        following = rows == list(range(rows[0], rows[0] + len(rows)))
        part: slice | Tensor = slice(rows[0], rows[0] + len(rows)) if following else groups.rows
        deltas = self.deltas[part]
        # Views are made once and not for every token.
        return Products(groups, self.side, self.index[part][:, None], deltas if self.side == "inputs" else deltas.mT)


@dataclass(frozen=True)
class Products:
    """What one stack adds to the outputs of one layer, for one batch.

    Attributes:
        groups: of the samples.
        side: of the channels.
        index: `(g, 1, s)`.
        factors: `(g, s, m)` for inputs, `(g, n, s)` for outputs.
    """

    groups: Groups
    side: Side
    index: Tensor
    factors: Tensor

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add to the outputs, in place.

        Args:
            x: inputs, with the samples in order in the leading dimension, each of which may have several rows.
            y: outputs, contiguous.
        """
        samples, places, span = self.groups.samples, self.groups.places, self.groups.span
        if span is not None and span.stop - span.start == samples:
            self._add_groups(x, y)
            return
        x, y = x.reshape(samples, -1, x.shape[-1]), y.view(samples, -1, y.shape[-1])
        if span is not None:
            # Consecutive samples are a view.
            self._add_groups(x[span], y[span])
            return
        part = y.index_select(0, places)
        self._add_groups(x.index_select(0, places), part)
        if self.groups.kept is not None:
            places, part = places[self.groups.kept], part.index_select(0, self.groups.kept)
        y.index_copy_(0, places, part)

    def _add_groups(self, x: Tensor, y: Tensor) -> None:
        """Add to the outputs of the samples in groups, `(g * c, ..., m)`, in place."""
        g, index, factors = len(self.factors), self.index, self.factors
        x, y = x.reshape(g, -1, x.shape[-1]), y.view(g, -1, y.shape[-1])
        if x.dtype != y.dtype or factors.dtype != y.dtype:  # autocast
            x, factors = x.to(y.dtype), factors.to(y.dtype)
        if x.shape[1] > 1:
            index = index.expand(-1, x.shape[1], -1)
        if self.side == "inputs":
            y.baddbmm_(_picked(x, index), factors)
        elif torch.is_grad_enabled():
            y.scatter_add_(-1, index, torch.bmm(x, factors))
        else:
            # The same, as no channel occurs twice, but deterministic on CUDA too. Autograd would keep the first `y`.
            values = _picked(y, index).add_(torch.bmm(x, factors))
            _bits(y).scatter_(-1, index, _bits(values))


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """Return the entries `(g, t, s)` of the last dimension."""
    if torch.is_grad_enabled():
        return x.gather(-1, index)
    return _bits(x).gather(-1, index).view(x.dtype)


def _bits(x: Tensor) -> Tensor:
    """Return half precision as integers, which the CPU gathers and scatters many times faster."""
    return x.view(torch.int16) if x.dtype.itemsize == 2 else x
