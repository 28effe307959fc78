"""Maps from scores to block sparsities. The entries of `ALLOCATIONS` name functions of this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from hf_farms.allocation.ends import place_ends, warn_of_few
from hf_farms.allocation.sparsity import allocate_by_difference, allocate_sparsity
from hf_farms.config import PruneConfig
from hf_farms.config.ends import Ends
from hf_farms.registries import ALLOCATIONS

__all__ = ["BlockScores", "by_depth", "by_difference", "by_score", "ends_of", "searched", "uniform"]


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """The input of an allocation: one entry for each block, in order of depth.

    Attributes:
        sizes: prunable weights; 0 for a block without any.
        scores: the values that the allocation needs, such as alphas, None for a block without one; None as a whole
            where it needs nothing.
        errors: standard error of each score, None where a score has none; None as a whole: all are exact.
    """

    sizes: Sequence[int]
    scores: Sequence[float | None] | None = None
    errors: Sequence[float | None] | None = None


class _Allocate(Protocol):
    """`allocate_sparsity` or `allocate_by_difference`."""

    def __call__(
        self,
        scores: Sequence[float],
        *,
        sizes: Sequence[int],
        target: float,
        spread: float,
        bounds: tuple[float, float],
    ) -> list[float]: ...


def uniform(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Return the total sparsity for every block."""
    return [config.sparsity] * len(blocks.sizes)


def searched(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Return the sparsities that a search found, which are the scores of the blocks."""
    assert blocks.scores is not None
    return [config.sparsity if score is None else score for score in blocks.scores]


def by_score(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Map scores linearly to relative sparsities: the higher the score, the more is removed; see `allocate_sparsity`.

    `config.ends` places the first and the last block, if the entry of the allocation lists it among its `options`.
    """
    return _map_scores(blocks, config, allocate_sparsity)


def by_difference(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Map scores linearly to sparsities with a fixed difference between them; see `allocate_by_difference`.

    `config.ends` counts as for `by_score`.
    """
    return _map_scores(blocks, config, allocate_by_difference)


def by_depth(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Raise sparsity linearly with depth: s_l = S + beta (l - (L-1)/2) for blocks of equal size (ATP).

    beta = 2 S spread / (L-1), so that the bound of the paper, beta <= min(2 S, 2 (1 - S)) / (L-1), is
    spread <= min(1, (1 - S) / S). Beyond it, sparsity is redistributed. In an encoder-decoder the decoder follows the
    encoder.
    """
    return by_score(replace(blocks, scores=[float(depth) for depth in range(len(blocks.sizes))]), config)


def _map_scores(blocks: BlockScores, config: PruneConfig, allocate: _Allocate) -> list[float]:
    assert blocks.scores is not None
    if len(blocks.scores) != len(blocks.sizes):
        raise ValueError(
            f"scores must have the length of sizes, got {len(blocks.scores)} and {len(blocks.sizes)}. "
            "Give one for each block."
        )
    scores = [score if size > 0 else None for score, size in zip(blocks.scores, blocks.sizes, strict=True)]
    errors = blocks.errors if blocks.errors is not None else [None] * len(blocks.sizes)
    placed = place_ends(scores, errors, ends=ends_of(config))
    if any(score is not None for score in scores):
        warn_of_few(placed, ends_of(config), result="every block gets the total sparsity")
    mapped = placed.mapped
    sparsities = [config.sparsity] * len(blocks.sizes)
    if not mapped:
        return sparsities
    # Blocks apart have the total sparsity, so that the others meet the same total.
    allocated = allocate(
        [score for score in placed.scores if score is not None],
        sizes=[blocks.sizes[index] for index in mapped],
        target=config.sparsity,
        spread=config.effective_spread * (placed.reliability if config.shrink else 1.0),
        bounds=(0.0, config.max_sparsity),
    )
    for index, sparsity in zip(mapped, allocated, strict=True):
        sparsities[index] = sparsity
    return sparsities


def ends_of(config: PruneConfig) -> Ends:
    """Return the ends that the allocation reads."""
    return config.ends if "ends" in ALLOCATIONS[config.allocation].options else "measured"
