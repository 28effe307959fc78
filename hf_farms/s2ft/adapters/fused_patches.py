"""Combine the patches of several adapters for one weight.

Symbols: k adapters, u channels in the union of their selections, o entries of a channel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from hf_farms.errors import ModelError
from hf_farms.registries.combinations import CombinationEntry
from hf_farms.s2ft.adapters.combining import Changes
from hf_farms.s2ft.adapters.patches import WeightPatch, fingerprint
from hf_farms.s2ft.base_slices import same_bits

__all__ = ["fused_patch"]


def fused_patch(
    patches: Mapping[int, WeightPatch],
    weights: Sequence[float],
    entry: CombinationEntry,
    *,
    density: float,
    generator: torch.Generator,
) -> WeightPatch:
    """Return the patch of one weight.

    Args:
        patches: of the same side, by position of the adapter; at least one.
        weights: of all adapters.
        entry: the combination.
        density: of the combination.
        generator: of random choices.

    Raises:
        ValueError: a base slice that is needed is missing, or weights so large that values overflow.
        ModelError: other bases.
    """
    (position, first), *others = patches.items()
    if not others and weights[position] == 1 and "density" not in entry.options:
        return first  # also without the base slice
    union = torch.cat([patch.indices for patch in patches.values()]).unique()
    base = _base(patches.values(), union)
    changes = torch.zeros(len(patches), *base.shape, dtype=torch.float64)
    present = torch.zeros(len(patches), len(union), dtype=torch.bool)
    for row, patch in enumerate(patches.values()):
        at = torch.searchsorted(union, patch.indices)
        present[row, at] = True
        changes[row, at] = _rows(patch, patch.values).double() - base[at].double()
    chosen = torch.tensor([weights[i] for i in patches], dtype=torch.float64)
    change = entry.load()(Changes(changes, present, chosen, density, generator))
    values = torch.where(change == 0, base, (base.double() + change).to(base.dtype))
    for row, patch in enumerate(patches.values()):
        # A channel that changes as in this adapter alone has its bits, which base plus change might round.
        at = torch.searchsorted(union, patch.indices)
        same = (change[at] == changes[row, at]).all(1)
        values[at[same]] = _rows(patch, patch.values)[same]
    if not values.isfinite().all():
        raise ValueError(
            f"weights must keep all values finite in {values.dtype}, got an overflow in {first.name}. "
            "Pass smaller ones."
        )
    stored = base.movedim(0, first.dim).contiguous()
    return WeightPatch(
        name=first.name,
        shape=first.shape,
        side=first.side,
        dim=first.dim,
        indices=union,
        values=values.movedim(0, first.dim).contiguous(),
        base=stored,
        base_fingerprint=fingerprint(stored),
    )


def _base(patches: Collection[WeightPatch], union: Tensor) -> Tensor:
    """Return the base of all channels, `(u, o)`; adapters without base slices take those of the others.

    Raises:
        ValueError: no adapter has the base of some channels.
        ModelError: two adapters have other slices, or other fingerprints, for the same channels.
    """
    first = next(iter(patches))
    base = first.values.new_zeros(len(union), first.shape[1 - first.dim])
    known = torch.zeros(len(union), dtype=torch.bool)
    for patch in patches:
        if patch.base is None:
            continue
        at, rows = torch.searchsorted(union, patch.indices), _rows(patch, patch.base)
        both = known[at]
        if not same_bits(base[at[both]], rows[both]):
            raise _other_base(patch)
        base[at], known[at] = rows, True
    for patch in patches:
        at = torch.searchsorted(union, patch.indices)
        if patch.base is None and known[at].all():
            own = base[at].movedim(0, patch.dim).contiguous()
            if fingerprint(own) != patch.base_fingerprint:
                raise _other_base(patch)
        elif not known[at].all():
            raise ValueError(
                f"adapters must have the base slices of weights that are fused with a weight other than 1 or with "
                f"another adapter, got one without those of {patch.name}. Save it with `include_base=True`."
            )
    return base


def _other_base(patch: WeightPatch) -> ModelError:
    return ModelError(
        f"adapters must have the same base model to be fused, got different base slices of {patch.name}.",
        hint="Train both from one base model, in one dtype.",
    )


def _rows(patch: WeightPatch, part: Tensor) -> Tensor:
    """Return a slice with the channels as rows."""
    return part.movedim(patch.dim, 0)
