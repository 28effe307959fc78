"""Patterns N:M with an N for each block that round the allocation away, whatever the spectra or scores are."""

from __future__ import annotations

import warnings

from hf_farms.config.effects import has_warned
from hf_farms.config.prune import PruneConfig
from hf_farms.config.renamed import stack_level
from hf_farms.errors import NoEffectWarning
from hf_farms.registries import ALLOCATIONS

__all__ = ["is_rounded_away", "warn_rounded_away"]

MAPS = "hf_farms.allocation.sparsity_maps:"
# Those whose sparsities are within (1 - spread) / (1 + spread) of each other, and those that differ by the spread.
BY_RATIO, BY_DIFFERENCE = (f"{MAPS}by_score", f"{MAPS}by_depth"), (f"{MAPS}by_difference",)
ROUNDING = 1e-9


def is_rounded_away(config: PruneConfig) -> bool:
    """Return whether every block gets the same N for any spectra: all sparsities are nearer to it than half a step.

    Only where the total is a whole number of zeros in a group; otherwise blocks differ, and the allocation says which.
    """
    entry = ALLOCATIONS[config.allocation]
    if config.group is None or config.group[0] is not None or entry.function not in BY_RATIO + BY_DIFFERENCE:
        return False
    zeros, spread = config.sparsity * config.group[1], config.effective_spread
    # One block with the highest sparsity, all others with the lowest; the mean is the total.
    deviation = config.sparsity * 2 * spread / (1 - spread) if entry.function in BY_RATIO else spread
    return abs(zeros - round(zeros)) < ROUNDING and deviation * config.group[1] < 0.5


def warn_rounded_away(config: PruneConfig) -> None:
    """Warn before any work of an allocation that the pattern rounds away, unless a calling function has warned."""
    if not is_rounded_away(config) or has_warned():
        return
    assert config.group is not None
    size = config.group[1]
    kept = size - round(config.sparsity * size)
    warnings.warn(
        f"`allocation={config.allocation!r}` has no effect with pattern {config.pattern}: at a spread of "
        f"{config.effective_spread:g} every block keeps {kept} of every {size} weights. Choose a larger `spread`, or a "
        f"pattern of larger groups such as N:{2 * size}.",
        NoEffectWarning,
        stacklevel=stack_level(),
    )
