"""Allocate sparsity to the blocks of a model. The entries of `ALLOCATIONS` name functions of this file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_farms.allocation.ends import end_positions, place_ends, warn_of_few
from hf_farms.allocation.sparsity import allocate_sparsity
from hf_farms.config import PruneConfig
from hf_farms.config.checks import check_arguments
from hf_farms.config.ends import Ends
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import SpectralReport

__all__ = ["BlockScores", "block_alphas", "block_sparsities", "by_score", "plan_sparsity", "spread_note", "uniform"]


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """The input of an allocation: one entry for each block, in order of depth.

    Attributes:
        sizes: prunable weights.
        scores: what the allocation needs, such as alphas; None where it needs nothing.
        errors: standard error of each score, None where a score has none; None as a whole: all are exact.
    """

    sizes: Sequence[int]
    scores: Sequence[float] | None = None
    errors: Sequence[float | None] | None = None


def plan_sparsity(report: SpectralReport, *, config: PruneConfig | None = None) -> list[float]:
    """Compute the sparsity of each block for the allocation of `config`.

    `farms` and `alpha` use the same map on different measurements: `farms` needs a report over windows, `alpha` over
    whole matrices. A block without alpha (only zeros) gets the mean alpha of the others. `config.ends` places the first
    and the last block; apart, they get exactly the total sparsity.

    Args:
        report: report of the model to prune.
        config: sparsity, allocation, spread, shrinkage and ends.

    Returns:
        Sparsity of each block, in order of depth.

    Raises:
        ValueError: the report was not measured as the allocation requires, or the allocation needs activations.
    """
    check_arguments(plan_sparsity, report=report, config=config)
    config = config or PruneConfig()
    entry = ALLOCATIONS[config.allocation]
    sizes = [block.num_weights for block in report.blocks]
    if not entry.needs_spectra:
        return block_sparsities(BlockScores(sizes=sizes), config)
    if (entry.needs == "matrix") != (report.config.window_rows is None):
        needed = "whole matrices (window_rows=None)" if entry.needs == "matrix" else "windows"
        raise ValueError(
            f"report must be measured on {needed} for allocation {config.allocation!r}, got window_rows="
            f"{report.config.window_rows!r}. Use analyze(model, config.measurement())."
        )
    scores, errors = block_alphas(report, ends=_ends(config))
    return block_sparsities(BlockScores(sizes=sizes, scores=scores, errors=errors), config)


def block_sparsities(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Call the function of the allocation.

    Args:
        blocks: sizes, and the scores that the allocation needs.
        config: names the allocation.

    Raises:
        ValueError: an allocation that needs scores without them, or one that does not return a sparsity for each block.
    """
    entry = ALLOCATIONS[config.allocation]
    if entry.needs != "nothing" and blocks.scores is None:
        raise ValueError(
            f"scores must be given for allocation {config.allocation!r}, which needs {entry.needs}, got None. Call "
            "prune(model, config, calibration=...), which measures them."
        )
    sparsities = [float(sparsity) for sparsity in entry.load()(blocks, config)]
    if len(sparsities) != len(blocks.sizes) or not all(0 <= sparsity <= 1 for sparsity in sparsities):
        raise ValueError(
            f"allocation {config.allocation!r} must return a sparsity between 0 and 1 for each of {len(blocks.sizes)} "
            f"blocks, got {sparsities!r}."
        )
    return sparsities


def uniform(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Return the total sparsity for every block."""
    return [config.sparsity] * len(blocks.sizes)


def by_score(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Map scores linearly to sparsities: the higher the score, the more is removed; see `allocate_sparsity`.

    `config.ends` places the first and the last block, if the entry of the allocation lists it among its `options`.
    """
    assert blocks.scores is not None
    if len(blocks.scores) != len(blocks.sizes):
        raise ValueError(
            f"scores must have the length of sizes, got {len(blocks.scores)} and {len(blocks.sizes)}. "
            "Give one for each block."
        )
    errors = blocks.errors if blocks.errors is not None else [None] * len(blocks.sizes)
    placed = place_ends(blocks.scores, errors, ends=_ends(config))
    warn_of_few(placed, _ends(config), result="every block gets the total sparsity")
    mapped = placed.mapped
    sparsities = [config.sparsity] * len(blocks.sizes)
    if not mapped:
        return sparsities
    # Blocks apart have the total sparsity, so that the others meet the same total.
    allocated = allocate_sparsity(
        [score for score in placed.scores if score is not None],
        sizes=[blocks.sizes[index] for index in mapped],
        target=config.sparsity,
        spread=config.spread * placed.reliability if config.shrink else config.spread,
        bounds=(0.0, config.max_sparsity),
    )
    for index, sparsity in zip(mapped, allocated, strict=True):
        sparsities[index] = sparsity
    return sparsities


def _ends(config: PruneConfig) -> Ends:
    """Return the ends that the allocation reads."""
    return config.ends if "ends" in ALLOCATIONS[config.allocation].options else "measured"


def block_alphas(report: SpectralReport, *, ends: Ends = "measured") -> tuple[list[float], list[float | None]]:
    """Return alpha of each block and its standard error; a block without alpha gets the mean of the others.

    Args:
        report: with the blocks.
        ends: blocks that this places do not count in the mean.
    """
    apart = end_positions(ends, len(report.blocks))
    known = [block.alpha for i, block in enumerate(report.blocks) if block.alpha is not None and i not in apart]
    mean = math.fsum(known) / len(known) if known else 0.0
    alphas = [mean if block.alpha is None else block.alpha for block in report.blocks]
    return alphas, [block.alpha_stderr for block in report.blocks]


def spread_note(report: SpectralReport, config: PruneConfig) -> str | None:
    """Return a sentence on how shrinkage changed the spread; None where it does not apply or changed nothing."""
    entry = ALLOCATIONS[config.allocation]
    reads_spread = entry.needs_spectra and {"spread", "shrink"} <= set(entry.options)
    if not reads_spread or not config.shrink:
        return None
    scores, errors = block_alphas(report, ends=_ends(config))
    placed = place_ends(scores, errors, ends=_ends(config))
    if len(placed.own) < 2:
        return None
    trust = placed.reliability
    shrunk, before = f"{config.spread * trust:.4g}", f"{config.spread:.4g}"
    if shrunk == before:
        return None
    if trust == 0:
        return f"The blocks' alphas differ by no more than chance (reliability 0.000): spread {before} became {shrunk}."
    return f"Reliability of the block scores {trust:.3f}: spread {before} became {shrunk}."
