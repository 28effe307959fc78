"""Write an adapter into the weights of a plain model, and take it out again, without arithmetic.

The base slices that a merge replaces are kept on the model, so that one adapter serves several models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_farms.blocks.wrappers import unwrapped
from hf_farms.errors import ModelError
from hf_farms.files.documents import short_repr
from hf_farms.s2ft.adapters.channels import Channels
from hf_farms.s2ft.adapters.comparisons import COMPARED, Comparisons, comparisons_of
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint
from hf_farms.s2ft.adapters.targets import resolve
from hf_farms.s2ft.base_slices import MERGED, same_bits

__all__ = ["ROUTER", "is_merged", "merge", "merged", "switch", "unmerge"]

# Attribute of a model with its AdapterRouter.
ROUTER = "_hf_farms_router"


@dataclass(frozen=True)
class _Target:
    """A patch with its parameter, and its channels on the device of the parameter."""

    patch: WeightPatch
    parameter: nn.Parameter
    channels: Channels


def merge(adapter: S2FTAdapter, model: nn.Module) -> None:
    """Write the slices of an adapter into a model; see `S2FTAdapter.merge`."""
    targets, inner = _targets(adapter, model), unwrapped(model)
    _check_not_routed(inner)
    if is_merged(inner):
        raise ValueError(
            f"model must have no adapter merged into it, got a {type(inner).__name__} with one. Call unmerge(model) of "
            "that adapter first, or switch(model, to) to change to another one; fuse makes one adapter of several."
        )
    bases = _bases(adapter, targets, comparisons_of(inner), {})
    _write(inner, adapter, targets, _channels(targets), bases=bases, undo=list(bases.items()))


def unmerge(adapter: S2FTAdapter, model: nn.Module) -> None:
    """Put the base slices back; see `S2FTAdapter.unmerge`."""
    targets, inner = _targets(adapter, model), unwrapped(model)
    backups = _checked_backups(adapter, targets, inner)
    _write(inner, None, targets, list(backups.items()), bases=None, undo=_channels(targets))


def switch(adapter: S2FTAdapter, model: nn.Module, to: S2FTAdapter) -> None:
    """Replace a merged adapter by another one; see `S2FTAdapter.switch`."""
    if not isinstance(to, S2FTAdapter):
        raise ValueError(
            f"to must be an S2FTAdapter, got {short_repr(to)}. Load it first: S2FTAdapter.from_pretrained(...)."
        )
    old, new, inner = _targets(adapter, model), _targets(to, model, checked=True), unwrapped(model)
    _check_not_routed(inner)
    backups = _checked_backups(adapter, old, inner)
    bases = _bases(to, new, comparisons_of(inner), backups)
    # Columns of both are written at once: the rows are gone through once, in two thirds of the time.
    joined = {name for name in backups.keys() & new.keys() if backups[name].dim == new[name].channels.dim == 1}
    writes = [(name, new[name].channels.over(backup) if name in joined else backup) for name, backup in backups.items()]
    writes += [(name, target.channels) for name, target in new.items() if name not in joined]
    _write(inner, to, old | new, writes, bases=bases, undo=[*bases.items(), *_channels(old)])


@contextmanager
def merged(adapter: S2FTAdapter, model: nn.Module) -> Iterator[nn.Module]:
    """Merge an adapter within a context; see `S2FTAdapter.on`."""
    merge(adapter, model)
    try:
        yield model
    finally:
        unmerge(adapter, model)


def is_merged(model: nn.Module) -> bool:
    """Return whether `merge` has written an adapter into this model, whose base was not loaded again since."""
    inner = unwrapped(model)
    backups = _backups(inner)
    if backups is None:
        return False
    parameters = dict(inner.named_parameters())
    if any(not _holds(parameters.get(name), backup) for name, backup in backups.items()):
        return True
    _keep(inner, None)
    return False


def _holds(parameter: nn.Parameter | None, backup: Channels) -> bool:
    """Return whether a parameter, which may have been cast or replaced, has the slice of the base."""
    if parameter is None or parameter.dtype != backup.values.dtype:
        return False
    return _on_device(backup, parameter.device).are_in(parameter)


def _check_not_routed(model: nn.Module) -> None:
    """Reject a merge inside `AdapterRouter.using`: both changes would add up."""
    router = model.__dict__.get(ROUTER)
    if router is not None and router.is_active:
        raise ValueError(
            f"model must not be inside router.using(...), got a {type(model).__name__} with adapters in use. Merge "
            "after it, or give the adapter to the router as one of its adapters."
        )


def _backups(model: nn.Module) -> Mapping[str, Channels] | None:
    backups: Mapping[str, Channels] | None = model.__dict__.get(MERGED)
    return backups


def _targets(adapter: S2FTAdapter, model: nn.Module, *, checked: bool = False) -> dict[str, _Target]:
    """Return the patches by name in memory, checked, and with everything that is written on their devices."""
    targets = {}
    for key, (name, _, parameter) in resolve(model, adapter, checked=checked).items():
        patch, device = adapter.patches[key], parameter.device
        channels = Channels(patch.dim, patch.indices.to(device), patch.values.to(device))
        targets[name] = _Target(patch, parameter, channels)
    return targets


def _parameters(targets: Mapping[str, _Target]) -> dict[str, nn.Parameter]:
    return {name: target.parameter for name, target in targets.items()}


def _channels(targets: Mapping[str, _Target]) -> list[tuple[str, Channels]]:
    return [(name, target.channels) for name, target in targets.items()]


def _write(
    model: nn.Module,
    adapter: S2FTAdapter | None,
    targets: Mapping[str, _Target],
    writes: Sequence[tuple[str, Channels]],
    *,
    bases: Mapping[str, Channels] | None,
    undo: Sequence[tuple[str, Channels]],
) -> None:
    """Write channels of named parameters in this order, or leave the model as it is if that is interrupted.

    Args:
        model: without wrappers.
        adapter: that is merged then; None: none.
        targets: of all channels.
        writes: the channels.
        bases: the slices below `adapter`.
        undo: channels that give the weights of before, in this order.
    """
    parameters, compared, backups = _parameters(targets), comparisons_of(model), _backups(model)
    compared.forget_if_touched(parameters)
    try:
        for name, channels in writes:
            channels.write(parameters[name])
        _keep(model, bases)
        compared.note(adapter, parameters)
        setattr(model, COMPARED, compared)
    except BaseException:  # Ctrl-C too: nothing else knows which channels were written
        for name, channels in undo:
            channels.write(parameters[name])
        _keep(model, backups)
        raise


def _keep(model: nn.Module, bases: Mapping[str, Channels] | None) -> None:
    """Keep the slices below the merged adapter on the model, or none."""
    model.__dict__.pop(MERGED, None) if bases is None else setattr(model, MERGED, bases)


def _bases(
    adapter: S2FTAdapter, targets: Mapping[str, _Target], compared: Comparisons, backups: Mapping[str, Channels]
) -> dict[str, Channels]:
    """Return the slices that a merge replaces, as they are below `backups`; they must be those of the adapter's base.

    They are read from the weights only if this adapter was not compared with them before.
    """
    bases, known = {}, compared.fits(adapter, _parameters(targets))
    for name, target in targets.items():
        base, backup = _own_base(target) if known else None, backups.get(name)
        if base is None or (backup is None and not base.are_in(target.parameter, whole=False)):
            place = target.channels
            base = Channels(place.dim, place.indices, place.read(target.parameter))
            base = base if backup is None else base.updated(backup)
            _check_base(target, base.values)
        bases[name] = base
    return bases


def _check_base(target: _Target, base: Tensor) -> None:
    """Reject a model whose slices are not those that the adapter was trained from."""
    patch = target.patch
    if patch.base is not None:
        fits = same_bits(base, patch.base.to(base.device))
    else:
        fits = fingerprint(base) == patch.base_fingerprint
    if fits:
        return
    if same_bits(base, target.channels.values):
        raise ModelError(
            f"model must be the base model of the adapter, got one that holds the adapter already, in {patch.name}.",
            hint="Load the base model, or call unmerge(model).",
        )
    raise ModelError(
        f"model must be the base model of the adapter, got other weights in {patch.name}.",
        hint="Load the base model in the revision of the training; see adapter.base_model and adapter.base_revision.",
    )


def _checked_backups(adapter: S2FTAdapter, targets: Mapping[str, _Target], model: nn.Module) -> Mapping[str, Channels]:
    """Return the slices below a merged adapter; those of the adapter for a model that was saved with it merged.

    Raises:
        ValueError: this adapter is not merged.
        ModelError: the weights have changed since.
    """
    backups = _backups(model)
    if backups is not None and backups.keys() == targets.keys():
        backups = {name: _on_device(backup, targets[name].parameter.device) for name, backup in backups.items()}
    same = backups is None or (
        backups.keys() == targets.keys()
        and all(backups[name].same_place(target.channels) for name, target in targets.items())
    )
    if not same:
        raise ValueError(
            "model must have this adapter merged into it, got another one. Call the method of the adapter that was "
            "merged."
        )
    untouched = comparisons_of(model).has_merged(adapter, _parameters(targets))
    for target in targets.values():
        if target.channels.are_in(target.parameter, whole=not untouched):
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
    return {name: _needed_base(target) for name, target in targets.items()}


def _needed_base(target: _Target) -> Channels:
    base = _own_base(target)
    if base is None:
        raise ModelError(
            "the base slices must be known to unmerge an adapter, got a model that was saved with it merged and an "
            "adapter that was saved with `include_base=False`.",
            hint="Load the base model.",
        )
    return base


def _own_base(target: _Target) -> Channels | None:
    """Return the base that the adapter itself has, on the device of the parameter."""
    base, place = target.patch.base, target.channels
    return None if base is None else Channels(place.dim, place.indices, base.to(target.parameter.device))


def _on_device(backup: Channels, device: torch.device) -> Channels:
    """Return a backup on the device of its parameter, to which the model may have been moved after the merge."""
    return Channels(backup.dim, backup.indices.to(device), backup.values.to(device))
