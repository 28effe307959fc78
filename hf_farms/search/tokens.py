"""Tokens of the selection text: their number, and batches with a given number of them."""

from __future__ import annotations

from hf_farms.metrics.divergence import Batches

__all__ = ["spaced", "token_count"]


def spaced(batches: Batches, tokens: int) -> Batches:
    """Return batches of about so many tokens, evenly spaced."""
    mean = token_count(batches) / max(1, len(batches))
    count = min(len(batches), max(1, round(tokens / max(1.0, mean))))
    return [batches[i * len(batches) // count] for i in range(count)]


def token_count(batches: Batches) -> int:
    """Return the number of tokens, masked ones included."""
    return sum(next(iter(batch.values())).numel() for batch in batches)
