"""Rules that combine the changes of several adapters in one weight.

The names and rules are those of PEFT's `add_weighted_adapter`; PEFT applies them to the factors of LoRA, here they act
on the change of the weight itself, as in the papers (TIES, arXiv 2306.01708; DARE, arXiv 2311.03099).

Symbols: k adapters, u channels in the union of their selections, o entries of a channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Changes", "cat", "dare_linear", "dare_ties", "linear", "magnitude_prune", "ties"]


@dataclass(frozen=True)
class Changes:
    """The changes of all adapters in one weight.

    Attributes:
        changes: `(k, u, o)` float64, values minus base; 0 where an adapter does not have the channel.
        present: `(k, u)` bool, the channels of each adapter.
        weights: `(k,)` float64.
        density: share of the entries of each adapter that is kept; 1 where the rule has none.
        generator: of random choices.
    """

    changes: Tensor
    present: Tensor
    weights: Tensor
    density: float
    generator: torch.Generator

    @property
    def weighted(self) -> Tensor:
        """The changes times their weights."""
        return self.changes * self.weights[:, None, None]


def linear(changes: Changes) -> Tensor:
    """Return the weighted mean where selections overlap, and the weighted change in a channel of one adapter."""
    total = (changes.weights[:, None] * changes.present).sum(0)
    divisor = torch.where(changes.present.sum(0) > 1, total, 1.0)
    return changes.weighted.sum(0) / divisor[:, None]


def cat(changes: Changes) -> Tensor:
    """Return the weighted sum. PEFT concatenates factors, whose product is this sum."""
    return changes.weighted.sum(0)


def magnitude_prune(changes: Changes) -> Tensor:
    """Return the weighted sum of the largest entries of each adapter."""
    return cat(_largest(changes))


def ties(changes: Changes) -> Tensor:
    """Return the mean of the largest entries that have the sign of the sum (TIES)."""
    return _elected(_largest(changes))


def dare_linear(changes: Changes) -> Tensor:
    """Return the weighted sum of random entries, divided by their share (DARE)."""
    return cat(_random(changes))


def dare_ties(changes: Changes) -> Tensor:
    """Return the mean of random entries, divided by their share, that have the sign of the sum (DARE and TIES)."""
    return _elected(_random(changes))


def _elected(changes: Changes) -> Tensor:
    """Return for each entry the mean of the weighted changes that have the sign of the sum of the changes."""
    agrees = changes.changes.sign() == changes.changes.sum(0).sign()
    agrees &= changes.changes != 0
    return (changes.weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(changes: Changes) -> Changes:
    """Keep the entries of each adapter that are largest in magnitude."""
    kept = torch.zeros_like(changes.changes)
    for own, present, out in zip(changes.changes, changes.present, kept, strict=True):
        part = own[present]
        number = int(changes.density * part.numel())
        index = part.abs().flatten().topk(number).indices
        out[present] = torch.zeros_like(part).flatten().index_copy(0, index, part.flatten()[index]).view_as(part)
    return replace(changes, changes=kept)


def _random(changes: Changes) -> Changes:
    """Keep each entry with probability `density`, and divide it by that."""
    chance = torch.full_like(changes.changes, changes.density)
    return replace(
        changes, changes=changes.changes * torch.bernoulli(chance, generator=changes.generator) / changes.density
    )
