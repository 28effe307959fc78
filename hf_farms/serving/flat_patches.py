"""Adapters as flat patches: for each weight, positions in the flattened tensor and the values to write there.

Engines that split and fuse weights take changes in this form, in the names and shapes of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch
from hf_farms.s2ft.base_slices import bits

__all__ = ["FlatPatch", "flat_indices", "flat_patches"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatPatch:
    """New values of single elements of one weight: `weight.view(-1)[indices] = values`.

    Attributes:
        name: of the weight in the files of the base checkpoint.
        shape: of the whole weight.
        values: `(k,)`, in the dtype of the weight.
        indices: `(k,)`, unique; int32 if all positions of the weight fit.
    """

    name: str
    shape: tuple[int, int]
    values: Tensor
    indices: Tensor


def flat_indices(patch: WeightPatch) -> Tensor:
    """Return the positions of the channels of a patch in the flattened weight, in the order of its values."""
    rows, columns = patch.shape
    dtype = torch.int32 if rows * columns <= torch.iinfo(torch.int32).max else torch.int64
    channels = patch.indices.to(dtype)
    if patch.dim == 0:
        positions = channels[:, None] * columns + torch.arange(columns, dtype=dtype)
    else:
        positions = torch.arange(rows, dtype=dtype)[:, None] * columns + channels
    return positions.flatten()


def flat_patches(old: S2FTAdapter | None, new: S2FTAdapter | None) -> list[FlatPatch]:
    """Return the patches that turn a model with one adapter into the same model with another one.

    They write the values of the new adapter, and the base where only the old one has channels. Cost: an index and a
    value for every element of these channels.

    Args:
        old: whose slices the weights hold, with those of its base; None for the base model.
        new: of the same base, with the slices of it; None for the base model.

    Returns:
        At most one patch for each weight.

    Raises:
        ValueError: an adapter without the slices of its base.
        ModelError: adapters of different bases: another shape or dtype, or other base slices of a common channel.
    """
    before, after = _patches(old), _patches(new)
    return [_between(before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]


def _patches(adapter: S2FTAdapter | None) -> dict[str, WeightPatch]:
    return {} if adapter is None else dict(adapter.patches)


def _between(old: WeightPatch | None, new: WeightPatch | None) -> FlatPatch:
    """Return the patch of one weight; one of the arguments is not None."""
    if old is None or new is None:
        patch = old if new is None else new
        assert patch is not None
        base = _base(patch)
        return _flat(patch, flat_indices(patch), base if new is None else patch.values)
    if (old.shape, old.values.dtype) != (new.shape, new.values.dtype):
        raise ModelError(
            f"adapters must be of one base model, got shapes or dtypes that differ in {new.name}: "
            f"{old.shape} in {old.values.dtype}, and {new.shape} in {new.values.dtype}.",
            hint="Serve them with two engines.",
        )
    old_base, new_base = _base(old).flatten(), _base(new).flatten()
    # Positions are unique within a patch, so that a sort of both brings each common one beside its copy.
    positions, old_positions = flat_indices(new), flat_indices(old)
    ordered, order = torch.sort(positions)
    at = torch.searchsorted(ordered, old_positions).clamp(max=len(ordered) - 1)
    common = ordered[at] == old_positions
    if not torch.equal(bits(old_base[common]), bits(new_base[order[at[common]]])):
        raise ModelError(
            f"adapters must be of one base model, got different slices of the base in {new.name}.",
            hint="Serve them with two engines.",
        )
    only_old = ~common
    return _flat(
        new,
        torch.cat([positions, old_positions[only_old]]),
        torch.cat([new.values.flatten(), old_base[only_old]]),
    )


def _flat(patch: WeightPatch, indices: Tensor, values: Tensor) -> FlatPatch:
    rows, columns = patch.shape
    return FlatPatch(name=patch.name, shape=(rows, columns), values=values.flatten(), indices=indices)


def _base(patch: WeightPatch) -> Tensor:
    if patch.base is None:
        raise ValueError(
            f"adapter must have the slices of its base for an engine, got none for {patch.name}. Save it with "
            "include_base=True."
        )
    return patch.base
