"""The blocks of a plan whose sparsity is at a limit: at `max_sparsity`, or at 0."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from hf_farms.allocation.notes import dense_note, limit_note
from hf_farms.allocation.plan import Plan, Scores
from hf_farms.blocks import BlockSource
from hf_farms.config import PruneConfig
from hf_farms.pruning.removal_plan import plan_targets
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import SpectralReport

__all__ = ["dense_of", "limit_of"]

# Too small for any sparsity to reach a limit.
SMALL_SPREAD = 1e-3


def limit_of(
    source: BlockSource,
    config: PruneConfig,
    plan: Plan,
    *,
    spectra: SpectralReport | None = None,
    scores: Scores | Sequence[float | None] | None = None,
) -> str | None:
    """Return a sentence on the blocks, or roles in blocks, that `max_sparsity` binds; None where it binds none.

    Args:
        source: names of the blocks.
        config: the limit, and the total sparsity.
        plan: made with this config.
        spectra: that it was made on.
        scores: that it was made on.
    """
    reached = any(s >= min(config.max_sparsity, 1 - 1e-9) for roles in plan for s in roles.values())
    if not reached or ALLOCATIONS[config.allocation].even:
        return None

    def planned(other: PruneConfig) -> Plan:
        return plan_targets(source, other, spectra=spectra, scores=scores)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plan has warned
        free = planned(replace(config, max_sparsity=1.0))
        # Where several would get 1 the scores decide, whose order a small spread keeps.
        has_spread = "spread" in ALLOCATIONS[config.allocation].options
        gentle = planned(replace(config, spread=SMALL_SPREAD)) if has_spread else free
    names, (limited, unlimited, order), unit = _units(source, plan, free, gentle)
    return limit_note(names, limited, unlimited, order, config, unit=unit)


def dense_of(source: BlockSource, config: PruneConfig, plan: Plan) -> str | None:
    """Return a sentence on the blocks, or roles in blocks, that the spread leaves dense; None without any."""
    if "spread" not in ALLOCATIONS[config.allocation].options:
        return None
    names, (planned,), unit = _units(source, plan)
    return dense_note(names, planned, config, unit=unit)


def _units(source: BlockSource, *plans: Plan) -> tuple[list[str], list[list[float]], str]:
    """Return the names of all blocks, or roles in them, their sparsity in each plan, and the plural noun."""
    single = any(len(set(roles.values())) > 1 for plan in plans for roles in plan)
    units = [(index, role) for index, roles in enumerate(plans[0]) for role in (roles if single else list(roles)[:1])]
    names = [source.metadata(index).name + (f" ({role})" if single else "") for index, role in units]
    return (
        names,
        [[plan[index][role] for index, role in units] for plan in plans],
        "roles of blocks" if single else "blocks",
    )
