"""Sentences on what an allocation did: shrinkage, and sparsities at their limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hf_farms.allocation.alphas import block_alphas, role_alphas
from hf_farms.allocation.ends import place_ends
from hf_farms.allocation.plan import by_role
from hf_farms.allocation.sparsity_maps import ends_of
from hf_farms.config import PruneConfig
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import SpectralReport

__all__ = ["dense_note", "limit_note", "spread_note"]

# Sparsities that differ by less are equal up to rounding.
ROUNDING = 1e-9


def spread_note(report: SpectralReport, config: PruneConfig) -> str | None:
    """Return a sentence on how shrinkage changed the spread; None where it does not apply or changed nothing."""
    parts = [replace(config, allocation=name) for name in ALLOCATIONS[config.allocation].parts] or [config]
    part = next((part for part in parts if _shrinks(part)), None)
    if part is None:
        return None
    before = f"{part.effective_spread:.4g}"
    if by_role(part):
        return _role_note(report, part, before)
    trust = _reliability(*block_alphas(report, ends=ends_of(part)), part)
    if trust is None or (shrunk := f"{part.effective_spread * trust:.4g}") == before:
        return None
    reduced = f"so the spread of the sparsities was reduced from {before} to {shrunk}."
    if trust == 0:
        return f"The blocks' alphas differ by no more than chance, {reduced}"
    return f"Measurement error is {1 - trust:.1%} of the variance between the blocks' alphas, {reduced}"


def _shrinks(config: PruneConfig) -> bool:
    entry = ALLOCATIONS[config.allocation]
    return config.shrink and entry.needs_spectra and {"spread", "shrink"} <= set(entry.options)


def _reliability(scores: Sequence[float | None], errors: Sequence[float | None], config: PruneConfig) -> float | None:
    placed = place_ends(scores, errors, ends=ends_of(config))
    return placed.reliability if len(placed.own) >= 2 else None


def _role_note(report: SpectralReport, config: PruneConfig, before: str) -> str | None:
    roles = dict.fromkeys(layer.role for block in report.blocks for layer in block.layers if layer.counts)
    trusts = {role: _reliability(*role_alphas(report, role, ends_of(config)), config) for role in roles}
    known = {role: trust for role, trust in trusts.items() if trust is not None}
    if not known or min(known.values()) == 1:
        return None
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    shrunk = [f"{config.effective_spread * known[role]:.4g}" for role in (low, high)]
    shares = f"{1 - known[high]:.1%} ({high}) to {1 - known[low]:.1%} ({low})"
    return (
        f"Measurement error is {shares} of the variance between alphas of a role, "
        f"so the spread of the sparsities was reduced from {before} to between {shrunk[0]} and {shrunk[1]}."
    )


def limit_note(
    names: Sequence[str],
    sparsities: Sequence[float],
    unlimited: Sequence[float],
    order: Sequence[float],
    config: PruneConfig,
    *,
    unit: str,
) -> str | None:
    """Return a sentence on blocks that `max_sparsity` binds; None where it binds none.

    Args:
        names: of the blocks, or of roles in them.
        sparsities: planned for them.
        unlimited: planned with `max_sparsity=1`.
        order: which of those that would get 1 is first: the one with the highest number.
        config: the limit, and the total sparsity.
        unit: the plural noun of what the names are.
    """
    limit = config.max_sparsity
    binding = [index for index, wish in enumerate(unlimited) if wish > max(limit, sparsities[index]) + ROUNDING]
    if not binding:
        return None
    first = max(binding, key=lambda index: (round(unlimited[index], 9), order[index]))
    wish = "1 or more" if unlimited[first] > 1 - ROUNDING else f"{unlimited[first]:.4g}"
    block = f"{names[first]}, which would get {wish}"
    if config.sparsity >= limit:
        return (
            f"`max_sparsity={limit:g}` leaves no room above the total sparsity of {config.sparsity:g}: it binds first "
            f"in {block}, and no block gets more than the total."
        )
    advice = " A smaller `spread` avoids this." if "spread" in ALLOCATIONS[config.allocation].options else ""
    return (
        f"`max_sparsity={limit:g}` binds in {len(binding)} of {len(names)} {unit}, first in {block}: the difference is "
        f"removed from the others.{advice}"
    )


def dense_note(names: Sequence[str], sparsities: Sequence[float], config: PruneConfig, *, unit: str) -> str | None:
    """Return a sentence on blocks that stay dense because the spread would take them below 0; None without any.

    Args:
        names: of the blocks, or of roles in them.
        sparsities: planned for them.
        config: the total sparsity.
        unit: the plural noun of what the names are.
    """
    dense = [name for name, sparsity in zip(names, sparsities, strict=True) if sparsity <= 0]
    if not dense or config.sparsity == 0:
        return None
    return (
        f"The spread leaves {len(dense)} of {len(names)} {unit} dense, such as {dense[0]}, as no sparsity is below 0: "
        f"sparsities differ by at most {max(sparsities):.4g}. A smaller `spread` avoids this."
    )
