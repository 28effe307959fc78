"""The blocks that `max_sparsity` binds in the plan of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from hf_farms.allocation.notes import limit_note
from hf_farms.allocation.plan import Plan, Scores
from hf_farms.blocks import BlockSource
from hf_farms.config import PruneConfig
from hf_farms.pruning.removal_plan import plan_targets
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import SpectralReport

__all__ = ["limit_of"]


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plan has warned
        free = plan_targets(source, replace(config, max_sparsity=1.0), spectra=spectra, scores=scores)
    single = any(len(set(roles.values())) > 1 for roles in free)
    units = [(index, role) for index, roles in enumerate(free) for role in (roles if single else list(roles)[:1])]
    names = [source.metadata(index).name + (f" ({role})" if single else "") for index, role in units]
    planned, unlimited = ([p[index][role] for index, role in units] for p in (plan, free))
    return limit_note(names, planned, unlimited, config, unit="roles of blocks" if single else "blocks")
