"""Tokens of the selection text: their number, and batches with a given number of them."""

from __future__ import annotations

from hf_farms.errors import DataError
from hf_farms.metrics.divergence import Batches

__all__ = ["evenly", "spaced", "split_by_tokens", "token_count"]


def split_by_tokens(batches: Batches, screen_tokens: int, refine_tokens: int) -> tuple[Batches, Batches]:
    """Return batches for all plans, and others for the finalists; in a short text all of them for the latter.

    Args:
        batches: one row each.
        screen_tokens: tokens for all plans, about.
        refine_tokens: tokens for the finalists, about.
    """
    screen = spaced(batches, screen_tokens)
    rest = [batch for batch in batches if not any(batch is other for other in screen)]
    refine = spaced(rest, refine_tokens) if token_count(rest) >= token_count(screen) else list(batches)
    if not screen:
        raise DataError("selection must hold at least one token, got none.")
    return screen, refine


def spaced(batches: Batches, tokens: int) -> Batches:
    """Return batches of about so many tokens, evenly spaced."""
    mean = token_count(batches) / max(1, len(batches))
    return evenly(batches, max(1, round(tokens / max(1.0, mean))))


def evenly(batches: Batches, count: int) -> Batches:
    """Return at most so many batches, evenly spaced."""
    count = min(len(batches), count)
    return [batches[i * len(batches) // count] for i in range(count)]


def token_count(batches: Batches) -> int:
    """Return the number of tokens, masked ones included."""
    return sum(next(iter(batch.values())).numel() for batch in batches)
