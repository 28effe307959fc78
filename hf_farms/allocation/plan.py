"""Plan the sparsity of each block, or of each role in each block, for the allocation of a config."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_farms.allocation.alphas import block_alphas, role_alphas
from hf_farms.allocation.sparsity_maps import BlockScores, ends_of
from hf_farms.config import PruneConfig
from hf_farms.config.checks import check_arguments
from hf_farms.config.renamed import stack_level
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import SpectralReport

__all__ = [
    "WHOLE",
    "Plan",
    "Scores",
    "block_sparsities",
    "by_role",
    "mean_sparsity",
    "plan_roles",
    "plan_sparsity",
    "weighted_mean",
]

# Key of a block as a whole, beside the roles of its layers.
WHOLE = ""
# For each block: role -> sparsity.
Plan = list[dict[str, float]]
# Allocation -> for each block: role, or WHOLE -> score; None where it can have none.
Scores = Mapping[str, Sequence[Mapping[str, float | None]]]


def plan_sparsity(report: SpectralReport, *, config: PruneConfig | None = None) -> list[float]:
    """Compute the sparsity of each block for the allocation of `config`.

    `farms` and `alpha` use the same map on different measurements: `farms` needs a report over windows, `alpha` over
    whole matrices. A block without alpha (only zeros) gets the mean alpha of the others. `config.ends` places the first
    and the last block; apart, they get exactly the total sparsity. With `config.granularity="layer"` the sparsity of a
    block is the mean over its layers.

    Args:
        report: report of the model to prune.
        config: sparsity, allocation, granularity, spread, shrinkage and ends.

    Returns:
        Sparsity of each block, in order of depth.

    Raises:
        ValueError: the report was not measured as the allocation requires, or the allocation needs activations or
            is chosen by a search.
    """
    check_arguments(plan_sparsity, report=report, config=config)
    config = config or PruneConfig()
    sizes: list[dict[str, int]] = [{} for _ in report.blocks]
    for block, roles in zip(report.blocks, sizes, strict=True):
        for layer in block.layers:
            if layer.counts:
                roles[layer.role] = roles.get(layer.role, 0) + math.prod(layer.shape)
    plan = plan_roles(sizes, config, spectra=report)
    return [mean_sparsity(roles, weights, config) for roles, weights in zip(plan, sizes, strict=True)]


def plan_roles(
    sizes: Sequence[Mapping[str, int]],
    config: PruneConfig,
    *,
    spectra: SpectralReport | None = None,
    scores: Scores | None = None,
) -> Plan:
    """Compute the sparsity of each role in each block.

    With `config.granularity="block"`, all roles of a block have the same. With "layer", each role has its own map over
    blocks with the same total, so that the total of the model is met too. The parts of a mixture are planned one by
    one, and averaged.

    Args:
        sizes: for each block: role -> prunable weights.
        config: the allocation and its options.
        spectra: for allocations that need them.
        scores: for allocations that need activations; of one that searches, the sparsities that it found.

    Raises:
        ValueError: measurements are missing, or are not those that the allocation needs.
    """
    entry = ALLOCATIONS[config.allocation]
    if entry.parts:
        plans = [plan_roles(sizes, replace(config, allocation=n), spectra=spectra, scores=scores) for n in entry.parts]
        mean: Plan = entry.load()(plans, list(entry.parts.values()))
        return mean
    roles = dict.fromkeys(role for block in sizes for role in block) if by_role(config) else (WHOLE,)
    planned = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for role in roles:
            weights = [sum(block.values()) if role == WHOLE else block.get(role, 0) for block in sizes]
            planned[role] = block_sparsities(_measured(role, weights, config, spectra, scores), config)
    # The same for every role.
    for text, category in dict.fromkeys((str(warning.message), warning.category) for warning in caught):
        warnings.warn(text, category, stacklevel=stack_level())
    return [
        {role: planned[role if by_role(config) else WHOLE][index] for role in block}
        for index, block in enumerate(sizes)
    ]


def by_role(config: PruneConfig) -> bool:
    """Whether an allocation, which is no mixture, has a map for each role."""
    return config.granularity == "layer" and "granularity" in ALLOCATIONS[config.allocation].options


def _measured(
    role: str, sizes: list[int], config: PruneConfig, spectra: SpectralReport | None, scores: Scores | None
) -> BlockScores:
    """Return the input of the allocation: sizes, with alphas or scores of the blocks or of a role in them."""
    entry = ALLOCATIONS[config.allocation]
    if entry.needs_spectra and spectra is not None:
        _check_windows(spectra, config)
        ends = ends_of(config)
        alphas, errors = block_alphas(spectra, ends=ends) if role == WHOLE else role_alphas(spectra, role, ends)
        return BlockScores(sizes=sizes, scores=alphas, errors=errors)
    if (entry.needs_activations or entry.search) and scores is not None and config.allocation in scores:
        blocks = scores[config.allocation]
        if any(role not in block for block, size in zip(blocks, sizes, strict=False) if size):
            kind = f"role {role!r}" if role else "blocks"
            raise ValueError(f"scores must be given for {kind} with `granularity={config.granularity!r}`, got none.")
        return BlockScores(sizes=sizes, scores=[block.get(role) for block in blocks])
    return BlockScores(sizes=sizes)


def _check_windows(report: SpectralReport, config: PruneConfig) -> None:
    needs = ALLOCATIONS[config.allocation].needs
    if (needs == "matrix") != (report.config.window_rows is None):
        needed = "whole matrices (window_rows=None)" if needs == "matrix" else "windows"
        raise ValueError(
            f"report must be measured on {needed} for allocation {config.allocation!r}, got window_rows="
            f"{report.config.window_rows!r}. Use analyze(model, config.measurement())."
        )


def block_sparsities(blocks: BlockScores, config: PruneConfig) -> list[float]:
    """Call the function of the allocation.

    Args:
        blocks: sizes, and the scores that the allocation needs.
        config: names the allocation.

    Raises:
        ValueError: an allocation that needs scores or a search without them, or one that does not return a sparsity for
            each block.
    """
    entry = ALLOCATIONS[config.allocation]
    if entry.search and blocks.scores is None:
        raise ValueError(
            f"allocation must be one that is planned without pruned models, got {config.allocation!r}, which `prune` "
            "chooses on a selection text. Call prune(model, config, calibration=..., selection=...); the sparsities "
            "are in `report.search`."
        )
    if entry.needs != "nothing" and blocks.scores is None:
        raise ValueError(
            f"scores must be given for allocation {config.allocation!r}, which needs {entry.needs}, got None. Call "
            "prune(model, config, calibration=...), which measures them."
        )
    sparsities = [float(sparsity) for sparsity in entry.load()(blocks, config.settled())]
    if len(sparsities) != len(blocks.sizes) or not all(0 <= sparsity <= 1 for sparsity in sparsities):
        raise ValueError(
            f"allocation {config.allocation!r} must return a sparsity between 0 and 1 for each of {len(blocks.sizes)} "
            f"blocks, got {sparsities!r}."
        )
    return sparsities


def weighted_mean(plans: Sequence[Plan], weights: Sequence[float]) -> Plan:
    """Return the weighted mean of plans: each meets the total, so it does too."""
    return [
        {role: math.fsum(w * part[role] for w, part in zip(weights, parts, strict=True)) for role in parts[0]}
        for parts in zip(*plans, strict=True)
    ]


def mean_sparsity(roles: Mapping[str, float], sizes: Mapping[str, int], config: PruneConfig) -> float:
    """Return the sparsity of a block as a whole: the total sparsity for a block without layers to prune."""
    if len(set(roles.values())) <= 1:
        return next(iter(roles.values()), config.sparsity)
    return math.fsum(roles[role] * size for role, size in sizes.items()) / sum(sizes.values())
