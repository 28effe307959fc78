"""Place the first and the last block in a map from scores, by the option `ends`.

Alphas of different positions do not compare: the first and the last block differ from the others in healthy models too.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from hf_farms.allocation.block_scores import Estimate
from hf_farms.allocation.sparsity import reliability
from hf_farms.config.ends import LREnds
from hf_farms.config.renamed import stack_level
from hf_farms.errors import NoEffectWarning

__all__ = ["PlacedScores", "end_positions", "place_ends", "warn_of_few"]


@dataclass(frozen=True, kw_only=True)
class PlacedScores:
    """Scores as they enter a map.

    Attributes:
        scores: one for each unit; None: takes no part in the map.
        errors: standard error of each score, None where it has none.
        own: positions of the units that take part with their own score.
    """

    scores: list[float | None]
    errors: list[float | None]
    own: list[int]

    @property
    def mapped(self) -> list[int]:
        """Positions of the units that take part in the map."""
        return [index for index, score in enumerate(self.scores) if score is not None]

    @property
    def reliability(self) -> float:
        """Reliability of the units' own scores; copied scores say nothing about noise."""
        scores = [score for index in self.own if (score := self.scores[index]) is not None]
        return reliability(scores, [self.errors[index] for index in self.own])


def end_positions(ends: LREnds, count: int) -> set[int]:
    """Return the positions that `ends` changes: none, the first, or the first and the last of `count`."""
    if ends == "measured" or count == 0:
        return set()
    return {0} if ends.startswith("first-") else {0, count - 1}


def place_ends(
    scores: Sequence[float | None],
    errors: Sequence[float | None],
    *,
    ends: LREnds,
    positions: Collection[int] | None = None,
    beside: Collection[int] = (),
) -> PlacedScores:
    """Replace the scores of the ends.

    lowest: the lowest score of the other units, with its error. capped: the same where their own is higher. median: the
    median of the others, with the error of the middle unit (for an even number of units that of the mean of the two in
    the middle, as if they were independent). apart: none.

    With fewer than two other units nothing can be compared: no unit takes part in the map, and capped is as measured.

    Args:
        scores: one for each unit; None: takes no part in any case.
        errors: standard error of each score; None where it has none.
        ends: the rule.
        positions: units that are ends; None: `end_positions`.
        beside: units outside of the blocks, such as the head: their scores replace no others.
    """
    if positions is None:
        positions = end_positions(ends, len(scores))
    if ends == "first-capped":
        positions = _above_the_cap(scores, positions, beside)
    own = _own_scores(scores, positions)
    if not positions:
        return PlacedScores(scores=list(scores), errors=list(errors), own=own)
    if len(own) < 2:
        return PlacedScores(scores=[None] * len(scores), errors=[None] * len(scores), own=[])
    others = [(score, errors[i]) for i in own if i not in beside and (score := scores[i]) is not None]
    replacement = REPLACEMENTS[ends.removeprefix("first-")](others) if others else (None, None)
    placed: list[tuple[float | None, float | None]] = list(zip(scores, errors, strict=True))
    for index in positions:
        # A unit that takes no part in any case, such as layers that are too small, stays out.
        placed[index] = replacement if scores[index] is not None else (None, None)
    return PlacedScores(scores=[score for score, _ in placed], errors=[error for _, error in placed], own=own)


def _above_the_cap(
    scores: Sequence[float | None], positions: Collection[int], beside: Collection[int]
) -> Collection[int]:
    """Return the ends above all other units; those below count as measured, and so do all without two other units."""
    others = [score for i in _own_scores(scores, positions) if i not in beside and (score := scores[i]) is not None]
    if len(others) < 2:
        return ()
    return {i for i in positions if (score := scores[i]) is None or score > min(others)}


def _own_scores(scores: Sequence[float | None], positions: Collection[int]) -> list[int]:
    return [i for i, score in enumerate(scores) if score is not None and i not in positions]


def _lowest(others: Sequence[Estimate]) -> Estimate:
    return min(others, key=lambda estimate: estimate[0])


def _median(others: Sequence[Estimate]) -> Estimate:
    ordered = sorted(others, key=lambda estimate: estimate[0])
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    errors = [error for _, error in middle if error is not None]
    error = math.hypot(*errors) / len(middle) if errors else None
    return statistics.median(score for score, _ in others), error


def _apart(others: Sequence[Estimate]) -> tuple[None, None]:
    return None, None


REPLACEMENTS: dict[str, Callable[[Sequence[Estimate]], tuple[float | None, float | None]]] = {
    "capped": _lowest,
    "lowest": _lowest,
    "median": _median,
    "apart": _apart,
    "released": _apart,
}


def warn_of_few(placed: PlacedScores, ends: LREnds, *, result: str) -> None:
    """Warn where the ends leave fewer than two units to compare.

    Args:
        placed: from `place_ends`.
        ends: the rule.
        result: end of the sentence, such as "every block gets the total sparsity".
    """
    if ends != "measured" and placed.scores and not placed.own:
        warnings.warn(
            f"`ends={ends!r}` leaves fewer than two scores to compare: {result}. Use `ends='measured'`.",
            NoEffectWarning,
            stacklevel=stack_level(),
        )
