"""The time of a prune, from its work and measured speeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_farms.pruning.costs import TRAINING_PASSES, pruning_passes, recovery_passes
from hf_farms.pruning.recovery import block_config
from hf_farms.registries import ALLOCATIONS, RECOVERIES

if TYPE_CHECKING:
    from hf_farms.config import PruneConfig

__all__ = ["PruneEstimate", "Speed", "Work", "estimate_prune"]

# Shorter work is not announced.
SECONDS_AT_LEAST = 60.0
# Plans of a search that are screened, tokens of each, of the finalists and of the table; pruned finalists.
PLANS, PLAN_TOKENS, FINALISTS, FINALIST_TOKENS, TABLE_TOKENS, CHECKED = 54, 2048, 5, 16_384, 1024, 3
# Sequences that pruned finalists are recovered on, in one pass.
CHECK_SEQUENCES = 32
# Forward passes that a token takes which the model writes: a rough figure for CPUs, where tokens come one after another
# in batches of up to 64 sequences.
WRITING_PASSES = 4.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured seconds.

    Attributes:
        block: of a token in one block.
        head: of a token in the head, with its loss.
        weight: of a weight that is compared with the others of its row.
        multiply_add: of a multiply-add of a spectrum, as `analysis_cost` counts them.
    """

    block: float
    head: float
    weight: float
    multiply_add: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a prune, known before it starts.

    Attributes:
        blocks: number of blocks.
        weights: weights of the pruned layers.
        calibration: tokens of the calibration data.
        evaluation: tokens of the evaluation text; 0 without one.
        multiply_adds: of one measurement of the spectra.
        baseline: whether uniform sparsity is pruned and measured too.
        processes: that share the work.
        left: share of the blocks that an earlier run did not prune.
        sequences: number of sequences of the calibration data.
        written: tokens of the calibration data that the model writes.
        finished: stages that an earlier run finished: "spectra", "dense", "uniform", "search", "scores", "text".
    """

    blocks: int
    weights: int
    calibration: int
    evaluation: int
    multiply_adds: float
    baseline: bool
    processes: int = 1
    left: float = 1.0
    sequences: int = 1
    written: int = 0
    finished: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PruneEstimate:
    """Estimated time of a prune.

    Attributes:
        parts: name of each part with its number of runs and the seconds of all of them.
        baseline: seconds of the perplexity of uniform sparsity, with its pruning; 0 if it is not measured.
    """

    parts: tuple[tuple[str, int, float], ...]
    baseline: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(seconds for _, _, seconds in self.parts)

    @property
    def sentence(self) -> str | None:
        """One line with the parts, the argument in backticks; None for work of less than about a minute."""
        if self.seconds < SECONDS_AT_LEAST:
            return None
        parts = ", ".join(_counted(name, count) for name, count, _ in self.parts if count)
        saves = f"; `baseline=False` saves {_rough(self.baseline)}" if self.baseline >= SECONDS_AT_LEAST / 2 else ""
        return f"about {_rough(self.seconds)}: {parts}{saves}"


def estimate_prune(config: PruneConfig, work: Work, speed: Speed) -> PruneEstimate:
    """Estimate the seconds of a prune, from the stages that an earlier run did not finish.

    A pruning is two passes of the calibration data through the blocks, and a comparison of all weights; a perplexity
    is one pass of the evaluation text with the head; spectra are measured before and after. Passes of methods,
    recoveries and searches are those of their docstrings, or were calibrated. Reading and writing of files is left out.

    Args:
        config: method, allocation and recovery.
        work: of the prune.
        speed: measured on this machine, for one process.
    """
    shared = 1 / work.processes
    forward = work.blocks * speed.block
    tokens = work.calibration
    pruning = _pruning(config, tokens, work, speed) * shared + work.weights * speed.weight
    perplexity = work.evaluation * (forward + speed.head) * shared
    recovery, distilling = _recovery(config, work, forward, speed)
    uniform = work.baseline and "uniform" not in work.finished
    measurements = 1 if "spectra" in work.finished else 2
    perplexities = (1 + ("dense" not in work.finished) + uniform) if work.evaluation else 0
    parts = [
        ("spectral measurement", measurements, measurements * work.multiply_adds * speed.multiply_add * shared),
        ("perplexity", perplexities, perplexities * perplexity),
        ("pruning", 1 + uniform, (work.left + uniform) * (pruning + recovery)),
        ("distillation", (1 + uniform) * bool(distilling), (1 + uniform) * distilling),
    ]
    if work.written and "text" not in work.finished:
        parts.append(("text written by the model", 1, WRITING_PASSES * work.written * (forward + speed.head)))
    allocation = ALLOCATIONS[config.allocation]
    comparison = 0.0
    if config.searches and work.baseline and config.recovers:
        comparison = (1 + uniform) * FINALIST_TOKENS * (forward + speed.head) * shared
        parts.append(("comparison with uniform sparsity", 1, comparison))
    if config.searches and "search" not in work.finished:
        seconds = _search(config, work, speed)
        parts.append(("search", 1, min(seconds, 60 * config.minutes) if config.minutes is not None else seconds))
    elif allocation.needs_activations and not config.searches and "scores" not in work.finished:
        parts.append(("scoring", 1, 2 * tokens * forward * shared))
    baseline = uniform * (pruning + recovery + distilling + perplexity) + comparison
    return PruneEstimate(tuple(parts), baseline=baseline)


def _pruning(config: PruneConfig, tokens: float, work: Work, speed: Speed) -> float:
    return pruning_passes(config) * tokens * work.blocks * speed.block


def _recovery(config: PruneConfig, work: Work, forward: float, speed: Speed) -> tuple[float, float]:
    """Return the seconds of the recovery of all blocks, and of the training of the whole model."""
    entry = RECOVERIES[config.recover]
    if not config.recovers:
        return 0.0, 0.0
    passes = block_config(config, work.sequences).passes_over(work.sequences)
    blocks = recovery_passes(passes) * work.calibration * forward
    if entry.first is None:
        return blocks, 0.0
    # The head computes the predictions of the dense model too.
    trained = config.passes_over(work.sequences) * work.calibration
    return blocks, trained * TRAINING_PASSES * (forward + 2 * speed.head)


def _search(config: PruneConfig, work: Work, speed: Speed) -> float:
    """Return the seconds of a search: codes of all weights, plans, the sensitivity table, and pruned finalists.

    One process does all of it, on the passages of a text without continuations.
    """
    forward, tokens = work.blocks * speed.block, float(work.calibration - work.written or work.calibration)
    codes = check = _pruning(config, tokens, work, speed) + work.weights * speed.weight
    finalists, checked = FINALISTS, CHECKED
    if config.recovers:
        # Two plans between the best and uniform, of which one takes the place of a finalist.
        finalists, checked = finalists + 2, checked + 1
        tokens *= min(1.0, CHECK_SEQUENCES * work.calibration / work.sequences / tokens)
        check = _pruning(config, tokens, work, speed) + work.weights * speed.weight
        check += recovery_passes(1) * tokens * forward
    screened = PLANS * PLAN_TOKENS + finalists * FINALIST_TOKENS
    heads = 5 * work.blocks * TABLE_TOKENS
    passes = screened * (forward + 2 * speed.head) + heads * (forward / 2 + 2 * speed.head)
    return passes + codes + checked * check


def _counted(name: str, count: int) -> str:
    if count == 1:
        return f"1 {name}"
    return f"{count} {name.removesuffix('y')}ies" if name.endswith("y") else f"{count} {name}s"


def _rough(seconds: float) -> str:
    """Format a duration with the digits that an estimate has."""
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 10 * 3600 else f"{round(seconds / 3600)} h"
