"""Blocks that stand out: alphas above those of the other blocks by more than the scatter of a healthy model.

The alphas of healthy blocks differ by more than their window errors, so those errors alone are the wrong null. A block
is compared with a robust fit over the other blocks, in units of their robust spread. Loads no torch.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_farms.config import FarmsConfig

if TYPE_CHECKING:
    from hf_farms.reports.spectral import BlockSpectrum, SpectralReport

__all__ = ["CAVEAT", "MIN_BLOCKS", "OutlyingBlock", "StandingOut", "find_standing_out", "standing_out_of"]

CAVEAT = (
    "Alpha shows how far weights have moved from random initial ones, not whether a block has learned the right thing."
)
NOTHING = "Nothing can be said about blocks that stand out"
# Without the first and the last, four blocks remain: the fewest of which one may be an outlier and three agree.
MIN_BLOCKS = 6
# Healthy models of 6 to 10 blocks gave the limits. Those of deep models assume that alphas have no curve over depth.
CALIBRATED_BLOCKS = 10
# Standard deviation of the alphas of healthy blocks, on the safe side: it exceeds what planted_alarms.py finds for its
# healthy models, so that no block of them stands out, however close together the others are.
HEALTHY_SPREAD = 0.035
# Blocks within so many spreads of the closest two thirds count for the final center and spread.
NEAR = 5.0
# Number of inner blocks -> residual that the largest exceeds in 5% of models, if alphas are normal, whatever their
# spread. Simulated by `planted_alarms.py --null` up to 126 blocks and rounded up; uneven, as a third is a whole number.
THRESHOLDS = {4: 7.3, 5: 5.2, 6: 6.7, 7: 4.8, 8: 3.95, 9: 4.7, 10: 4.1, 11: 3.85, 12: 4.1}
THRESHOLD_OF_MORE = 3.9
# Options that change the scatter of alphas between blocks.
CALIBRATED_OPTIONS = ("window_rows", "aspect_ratio", "windows_per_dim", "fit", "tail_divisor", "block_score")


@dataclass(frozen=True, kw_only=True)
class OutlyingBlock:
    """One block that stands out.

    Attributes:
        index: position, 0 is nearest to the input.
        name: module name.
        residual: its distance above the other blocks, in units of their spread.
    """

    index: int
    name: str
    residual: float


@dataclass(frozen=True, kw_only=True)
class StandingOut:
    """Blocks that stand out as less trained than the others, and the sentence that says so.

    Attributes:
        sentence: for the terminal, cards and readers of the report.
        blocks: those that stand out, in order of depth.
        threshold: residual above which a block stands out; None where nothing can be said.
        reason: why nothing can be said; None where something can.
    """

    sentence: str
    blocks: tuple[OutlyingBlock, ...] = ()
    threshold: float | None = None
    reason: str | None = None

    @property
    def indices(self) -> frozenset[int]:
        """Positions of the blocks that stand out."""
        return frozenset(block.index for block in self.blocks)


def standing_out_of(report: SpectralReport) -> StandingOut:
    """Return the blocks of a report that stand out; computed for reports that were saved without them."""
    return report.standing_out or find_standing_out(report.blocks, report.config)


def find_standing_out(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> StandingOut:
    """Find the blocks whose alpha lies above those of the other blocks by more than chance.

    The first and the last block are left out: their alphas differ in healthy models too.

    Args:
        blocks: all blocks of a model, in order of depth.
        config: the measurement.

    Returns:
        The blocks that stand out; or the reason why nothing can be said.
    """
    for rule in RULES:
        reason = rule(blocks, config)
        if reason is not None:
            return StandingOut(sentence=f"{NOTHING}: {reason}.", reason=reason)
    inner = blocks[1:-1]
    alphas = [block.alpha for block in inner if block.alpha is not None]
    errors = [block.alpha_stderr for block in inner if block.alpha_stderr is not None]
    limit = threshold(len(inner))
    far = blocks_far_above(alphas)
    if far > len(inner) // 3:
        reason = f"{far} of the {len(inner)} inner blocks lie far above the others, too many for a comparison"
        return StandingOut(sentence=f"{NOTHING}: {reason}.", reason=reason)
    outliers = tuple(
        OutlyingBlock(index=block.index, name=block.name, residual=round(residual, 3))
        for block, residual in zip(inner, studentized(alphas, errors), strict=True)
        if residual > limit
    )
    return StandingOut(sentence=_sentence(outliers, len(blocks)), blocks=outliers, threshold=round(limit, 3))


def blocks_far_above(alphas: Sequence[float]) -> int:
    """Count the blocks far above the closest half of them: more than a third would hide each other from the fit."""
    ordered, size = sorted(alphas), len(alphas) // 2 + 1
    windows = [ordered[start : start + size] for start in range(len(ordered) - size + 1)]
    center, spread = min(map(_moments, windows), key=lambda moments: moments[1])
    return sum(alpha > center + NEAR * max(spread, HEALTHY_SPREAD) for alpha in alphas)


def studentized(alphas: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Return the distance of each alpha from the center of most others, in units of their spread and its own error.

    Args:
        alphas: of the inner blocks.
        errors: their standard errors.
    """
    center, spread = center_and_spread(alphas)
    return [(alpha - center) / math.hypot(spread, error) for alpha, error in zip(alphas, errors, strict=True)]


def center_and_spread(alphas: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of the two thirds that are closest together, and of all that are near them.

    These are the least trimmed squares of a constant, reweighted once (Rousseeuw 1984): up to a third of the blocks may
    lie anywhere. Median and median deviation have that too, but miss two of six blocks at eight deviations; so does a
    robust line over depth, which leaves too few degrees of freedom. The spread is at least that of healthy models.
    """
    ordered, least = sorted(alphas), min_spread(len(alphas))
    size = len(ordered) - len(ordered) // 3
    windows = [ordered[start : start + size] for start in range(len(ordered) - size + 1)]
    center, spread = min(map(_moments, windows), key=lambda moments: moments[1])
    reach = NEAR * max(spread, least)
    center, spread = _moments([alpha for alpha in ordered if abs(alpha - center) <= reach])
    return center, max(spread, least)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(value / len(values) for value in values)
    # Squares of the alphas in an edited report may be too large for a float.
    return mean, math.hypot(*(value - mean for value in values)) / math.sqrt(len(values) - 1)


def threshold(count: int) -> float:
    """Return the residual that the largest of `count` normal alphas exceeds in one of twenty models, or fewer."""
    return THRESHOLDS.get(count, THRESHOLD_OF_MORE)


def min_spread(count: int) -> float:
    """Return the spread with which the threshold is `largest_normal(count)` times that of healthy models."""
    return HEALTHY_SPREAD * largest_normal(count) / threshold(count)


def largest_normal(count: int) -> float:
    """Return the value that the largest of `count` standard normal values exceeds with a probability of 5%."""
    return statistics.NormalDist().inv_cdf(0.95 ** (1 / count))


def _sentence(outliers: Sequence[OutlyingBlock], count: int) -> str:
    apart = "the first and last block are not judged"
    if count > CALIBRATED_BLOCKS:
        apart += f"; the limit comes from models of up to {CALIBRATED_BLOCKS} blocks"
    labels = [_label(block) for block in outliers]
    if not labels:
        return f"No block stands out: no alpha is higher than the others by more than chance ({apart}). {CAVEAT}"
    if len(labels) == 1:
        subject = f"Block {labels[0]} stands out: its alpha is"
    else:
        subject = f"Blocks {', '.join(labels[:-1])} and {labels[-1]} stand out: their alphas are"
    return f"{subject} higher than the others by more than chance, a sign of less training ({apart}). {CAVEAT}"


def _label(block: OutlyingBlock) -> str:
    """Return the number of a block; its name where that has another number, as in models that count from 1."""
    return str(block.index) if re.search(rf"(?<!\d){block.index}$", block.name) else block.name


def _too_few(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    count = f"{len(blocks)} block{'' if len(blocks) == 1 else 's'}"
    return f"the model has {count}, and at least {MIN_BLOCKS} are needed" if len(blocks) < MIN_BLOCKS else None


def _whole_matrices(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    return "alphas of whole matrices have no standard errors" if config.window_rows is None else None


def _other_measurement(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    default = FarmsConfig()
    values = [
        f"{name} {getattr(config, name)!r}"
        for name in CALIBRATED_OPTIONS
        if getattr(config, name) != getattr(default, name)
    ]
    return f"the limits are known for the default measurement only, not for {', '.join(values)}" if values else None


def _several_stacks(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    # Encoder and decoder, or stages of a CNN: a step between them is no sign of training.
    stacks = list(dict.fromkeys(re.sub(r"\.?\d+$", "", block.name) for block in blocks))
    names = ", ".join([*stacks[:3], *(["…"] if len(stacks) > 3 else [])])
    return f"the model has several stacks of blocks ({names})" if len(stacks) > 1 else None


def _several_kinds(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    kinds = {
        frozenset(layer.role for layer in block.layers if layer.counts and layer.alpha is not None)
        for block in blocks[1:-1]
        if block.layers
    }
    return "the blocks have different kinds of layers, whose alphas do not compare" if len(kinds) > 1 else None


def _no_alpha(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    names = [block.name for block in blocks[1:-1] if block.alpha is None]
    return f"{names[0]} has no alpha" if names else None


def _no_error(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    names = [block.name for block in blocks[1:-1] if block.alpha_stderr is None]
    return f"{names[0]} was measured on one window per layer, which has no standard error" if names else None


def _all_equal(blocks: Sequence[BlockSpectrum], config: FarmsConfig) -> str | None:
    return "all alphas are equal" if len({block.alpha for block in blocks[1:-1]}) == 1 else None


# In the order in which a reader would ask; the first that applies is said.
RULES: tuple[Callable[[Sequence[BlockSpectrum], FarmsConfig], str | None], ...] = (
    _whole_matrices,
    _several_stacks,
    _too_few,
    _no_alpha,
    _several_kinds,
    _no_error,
    _other_measurement,
    _all_equal,
)
