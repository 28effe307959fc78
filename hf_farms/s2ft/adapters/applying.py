"""Write an adapter into the weights of a plain model, and take it out again, without arithmetic.

The base slices that a merge replaces are kept on the model, so that one adapter serves several models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_farms.blocks.wrappers import unwrapped
from hf_farms.errors import ModelError
from hf_farms.files.documents import short_repr
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint
from hf_farms.s2ft.adapters.targets import resolve
from hf_farms.s2ft.base_slices import MERGED, put, same_bits, take

__all__ = ["ROUTER", "is_merged", "merge", "merged", "switch", "unmerge"]

# Attribute of a model with its AdapterRouter.
ROUTER = "_hf_farms_router"


@dataclass(frozen=True)
class _Backup:
    """Channels of a parameter before the merge; `values` lies on the device of the parameter at that time."""

    dim: int
    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Target:
    """A patch with its parameter: name in memory, tensor, and the patch's channels on its device."""

    patch: WeightPatch
    name: str
    parameter: nn.Parameter
    indices: Tensor
    values: Tensor

    def now(self) -> Tensor:
        """Return a copy of the patched channels as they are."""
        return take(self.parameter, self.patch.dim, self.indices)


def merge(adapter: S2FTAdapter, model: nn.Module) -> None:
    """Write the slices of an adapter into a model; see `S2FTAdapter.merge`."""
    targets, inner = _targets(adapter, model), unwrapped(model)
    _check_not_routed(inner)
    if _backups(inner) is not None:
        raise ValueError(
            f"model must have no adapter merged into it, got a {type(inner).__name__} with one. Call unmerge(model) of "
            "that adapter first, or switch(model, to) to change to another one; fuse makes one adapter of several."
        )
    backups = {}
    for target in targets:
        base = target.now()
        _check_base(target, base)
        backups[target.name] = _Backup(target.patch.dim, target.indices, base)
    for target in targets:
        put(target.parameter, target.patch.dim, target.indices, target.values)
    setattr(inner, MERGED, backups)


def unmerge(adapter: S2FTAdapter, model: nn.Module) -> None:
    """Put the base slices back; see `S2FTAdapter.unmerge`."""
    targets, inner = _targets(adapter, model), unwrapped(model)
    backups = _checked_backups(targets, inner)
    for target in targets:
        backup = backups[target.name]
        put(target.parameter, backup.dim, backup.indices, backup.values)
    inner.__dict__.pop(MERGED, None)


def switch(adapter: S2FTAdapter, model: nn.Module, to: S2FTAdapter) -> None:
    """Replace a merged adapter by another one; see `S2FTAdapter.switch`."""
    if not isinstance(to, S2FTAdapter):
        raise ValueError(
            f"to must be an S2FTAdapter, got {short_repr(to)}. Load it first: S2FTAdapter.from_pretrained(...)."
        )
    old, new, inner = _targets(adapter, model), _targets(to, model, checked=True), unwrapped(model)
    _check_not_routed(inner)
    backups = _checked_backups(old, inner)
    replaced = {}
    for target in new:
        base = _base_under(target, backups.get(target.name))
        _check_base(target, base)
        replaced[target.name] = _Backup(target.patch.dim, target.indices, base)
    left = {name: _not_in(backup, replaced.get(name)) for name, backup in backups.items()}
    for target in old:
        backup = left[target.name]
        put(target.parameter, backup.dim, backup.indices, backup.values)
    for target in new:
        put(target.parameter, target.patch.dim, target.indices, target.values)
    setattr(inner, MERGED, replaced)


@contextmanager
def merged(adapter: S2FTAdapter, model: nn.Module) -> Iterator[nn.Module]:
    """Merge an adapter within a context; see `S2FTAdapter.on`."""
    merge(adapter, model)
    try:
        yield model
    finally:
        unmerge(adapter, model)


def is_merged(model: nn.Module) -> bool:
    """Return whether `merge` has written an adapter into this model."""
    return _backups(unwrapped(model)) is not None


def _check_not_routed(model: nn.Module) -> None:
    """Reject a merge inside `AdapterRouter.using`: both changes would add up."""
    router = model.__dict__.get(ROUTER)
    if router is not None and router.is_active:
        raise ValueError(
            f"model must not be inside router.using(...), got a {type(model).__name__} with adapters in use. Merge "
            "after it, or give the adapter to the router as one of its adapters."
        )


def _backups(model: nn.Module) -> Mapping[str, _Backup] | None:
    backups: Mapping[str, _Backup] | None = model.__dict__.get(MERGED)
    return backups


def _targets(adapter: S2FTAdapter, model: nn.Module, *, checked: bool = False) -> list[_Target]:
    """Return the patches with their parameters, checked, and with everything that is written on their devices."""
    resolved, targets = resolve(model, adapter, checked=checked), []
    for key, patch in adapter.patches.items():
        name, _, parameter = resolved[key]
        device = parameter.device
        targets.append(_Target(patch, name, parameter, patch.indices.to(device), patch.values.to(device)))
    return targets


def _check_base(target: _Target, base: Tensor) -> None:
    """Reject a model whose slices are not those that the adapter was trained from."""
    patch = target.patch
    if patch.base is not None:
        fits = same_bits(base, patch.base.to(base.device))
    else:
        fits = fingerprint(base) == patch.base_fingerprint
    if fits:
        return
    if same_bits(base, target.values):
        raise ModelError(
            f"model must be the base model of the adapter, got one that holds the adapter already, in {patch.name}.",
            hint="Load the base model, or call unmerge(model).",
        )
    raise ModelError(
        f"model must be the base model of the adapter, got other weights in {patch.name}.",
        hint="Load the base model in the revision of the training; see adapter.base_model and adapter.base_revision.",
    )


def _checked_backups(targets: list[_Target], model: nn.Module) -> Mapping[str, _Backup]:
    """Return the slices below a merged adapter; those of the adapter for a model that was saved with it merged.

    Raises:
        ValueError: this adapter is not merged.
        ModelError: the weights have changed since.
    """
    backups = _backups(model)
    same = backups is None or (
        backups.keys() == {target.name for target in targets}
        and all(_same_channels(backups[target.name], target) for target in targets)
    )
    if not same:
        raise ValueError(
            "model must have this adapter merged into it, got another one. Call the method of the adapter that was "
            "merged."
        )
    for target in targets:
        if same_bits(target.now(), target.values):
            continue
        if backups is None:
            raise ValueError(
                f"model must have this adapter merged into it, got other weights in {target.patch.name}. Call "
                "adapter.merge(model) first."
            )
        raise ModelError(
            f"weights must be those of the adapter until it is unmerged, got others in {target.patch.name}, changed "
            "since the merge or by another adapter of the same channels.",
            hint="Load the base model again.",
        )
    if backups is not None:
        return backups
    return {target.name: _own_base(target) for target in targets}


def _own_base(target: _Target) -> _Backup:
    base = target.patch.base
    if base is None:
        raise ModelError(
            "the base slices must be known to unmerge an adapter, got a model that was saved with it merged and an "
            "adapter that was saved with `include_base=False`.",
            hint="Load the base model.",
        )
    return _Backup(target.patch.dim, target.indices, base.to(target.parameter.device))


def _same_channels(backup: _Backup, target: _Target) -> bool:
    indices = backup.indices.to(target.indices.device)
    return backup.dim == target.patch.dim and torch.equal(indices, target.indices)


def _base_under(target: _Target, backup: _Backup | None) -> Tensor:
    """Return the channels of a patch as they would be without the merged adapter."""
    base = target.now()
    if backup is None:
        return base
    values, indices, dim = backup.values.to(base.device), backup.indices.to(base.device), target.patch.dim
    if backup.dim != dim:
        return base.index_copy(backup.dim, indices, values.index_select(dim, target.indices))
    at, position = _positions(indices, target.indices)
    return base.index_copy(dim, position[at], values.index_select(dim, at))


def _not_in(backup: _Backup, other: _Backup | None) -> _Backup:
    """Return the channels of a backup that another one, of the same dimension, does not have."""
    if other is None or other.dim != backup.dim:
        return backup
    at, _ = _positions(backup.indices, other.indices.to(backup.indices.device))
    rest = torch.ones(len(backup.indices), dtype=torch.bool, device=backup.indices.device)
    rest[at] = False
    rest_at = rest.nonzero().flatten()
    values = backup.values.index_select(backup.dim, rest_at.to(backup.values.device))
    return _Backup(backup.dim, backup.indices[rest_at], values)


def _positions(indices: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places in `indices` of what both have, and for every place the position in `others` or its end."""
    position = torch.searchsorted(others, indices).clamp(max=len(others) - 1)
    return (others[position] == indices).nonzero().flatten(), position
