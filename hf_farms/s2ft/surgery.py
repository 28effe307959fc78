"""Turn a model into one of which a few channels train, and back, in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from hf_farms.blocks.coupling import undo_orders
from hf_farms.blocks.model_checks import check_model
from hf_farms.blocks.wrappers import plain_name, unwrapped
from hf_farms.config import S2FTConfig
from hf_farms.config.checks import check_arguments
from hf_farms.config.effects import warn_unused
from hf_farms.errors import HfFarmsWarning, NoEffectWarning
from hf_farms.s2ft.base_slices import KEPT, KeptBase, StoredSlice, same_bits, slices_as_stored, take
from hf_farms.s2ft.channels_by_module import channels_by_module
from hf_farms.s2ft.checks import check_trainable, check_whole
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.engines import one_engine
from hf_farms.s2ft.layers import InOriginalOrder, SelectiveLayer, selective_class
from hf_farms.s2ft.permuting import move_selected_first
from hf_farms.s2ft.selection import Batches, Selection, check_selections, choose_channels

__all__ = [
    "apply_s2ft",
    "apply_selection",
    "base_of",
    "replace_base",
    "restore",
    "selection_of",
    "selective_layers",
    "share_base",
    "write_back",
]

# Attribute of the model with the selection, and with what `restore` needs.
MARK = "_hf_farms_s2ft"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class _Applied:
    selection: Selection
    learned: frozenset[str]
    base: dict[str, StoredSlice]
    is_original: bool


def apply_s2ft(
    model: nn.Module,
    config: S2FTConfig | None = None,
    *,
    calibration: Batches | None = None,
    exclude: Selection | Sequence[Selection] = (),
    selection: Selection | None = None,
) -> Selection:
    """Make a few heads and channels of a model its only trainable parameters (S2FT, arXiv 2412.06289).

    All other parameters are frozen. Build the optimizer afterwards, over the parameters with `requires_grad`. Each of
    its steps also updates the weights; after any other change of the slices, call `write_back`. State dicts and
    `save_pretrained` contain the plain model, `hf_farms.s2ft.saving.save_selection` writes the selection. `restore`
    turns the model back into a plain one. Casts (`model.to(torch.bfloat16)`) leave the slices in float32.

    Memory: the trained slices, in float32 if the weights are in half precision, and on the CPU those of the base in the
    dtype of the model, for `S2FTAdapter`. Layout "permuted" copies one weight at a time here, and every permuted weight
    in a state dict.

    For FSDP2, call it before `fully_shard`, on every process with the same data or the same `selection`.

    If the weights contain an earlier training (after `restore`), the base of the new adapter is the model as it is now:
    a warning says so, and the adapter names no base model.

    Args:
        model: a transformers model in memory; changed in place.
        config: budget, roles, strategy and layout.
        calibration: batches for the strategies that need data, as in `select_channels`.
        exclude: selections that share no channel with the new one.
        selection: train these channels instead of choosing some, for instance those of a checkpoint.

    Returns:
        The selection; empty, with an unchanged model, if the model has neither attention nor feed-forward layers.

    Raises:
        ValueError: as `select_channels`; or the model has S2FT on it already, or an adapter merged into it.
        ModelError: a model that is quantized, sharded, offloaded, not loaded, or has adapters on it.
    """
    check_model(model)
    check_arguments(apply_s2ft, config=config)
    check_selections(calibration, exclude, selection)
    check_trainable(model)
    if selection is None:
        config = config or S2FTConfig()
        warn_unused(config)
        coupled = CoupledModel(model, config)
        selection = choose_channels(coupled, calibration=calibration, exclude=exclude)
    elif config is not None and config != selection.config:
        raise ValueError("config must be left out if there is a selection, which has its own, got both.")
    elif len(selection):
        coupled = CoupledModel(model, selection.config)
    if len(selection):
        apply_selection(coupled, selection)
    return selection


def apply_selection(coupled: CoupledModel, selection: Selection) -> None:
    """Make the channels of a selection the only trainable parameters, in a plain model whose structures are known.

    Args:
        coupled: of the config of the selection.
        selection: of at least one layer.

    Raises:
        ValueError: the selection does not fit the model.
        ModelError: layers that cannot be trained selectively.
    """
    model = coupled.model
    plan = channels_by_module(coupled, selection)
    is_original = _is_original(model)
    learned = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if selection.config.layout == "permuted":
        move_selected_first(coupled, selection)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # In the order of the model; the layers of a selection from a file are sorted by name.
    for module in [module for module in model.modules() if module in plan]:
        index, inputs = plan[module]
        orders = getattr(module, "s2ft_orders", {})
        plain = getattr(module, "s2ft_plain_class", type(module))
        layer: Any = module
        layer.__class__ = selective_class(plain)
        layer.s2ft_orders, layer.s2ft_plain_class = orders, plain
        layer.select(index, inputs=inputs, write_back=selection.config.write_back)
    model.__dict__.pop(KEPT, None)
    setattr(model, MARK, _Applied(selection, learned, slices_as_stored(model), is_original))


def restore(model: M) -> M:
    """Turn it back into a plain model with the trained weights, and restore `requires_grad`.

    Args:
        model: changed in place; a plain model stays unchanged.

    Returns:
        The model.

    Raises:
        ModelError: sharded weights.
    """
    check_model(model)
    applied: _Applied | None = model.__dict__.get(MARK)
    if applied is None:
        return model
    check_whole(model)
    model.__dict__.pop(MARK)
    for module in list(model.modules()):
        if isinstance(module, SelectiveLayer):
            module.release()
        if isinstance(module, InOriginalOrder):
            with torch.no_grad():
                for name, by_dim in module.s2ft_orders.items():
                    parameter = getattr(module, name)
                    parameter.copy_(undo_orders(parameter, by_dim))
            plain = module.s2ft_plain_class
            del module.s2ft_orders, module.s2ft_plain_class
            module.__class__ = plain  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in applied.learned)
    setattr(model, KEPT, KeptBase(applied.selection, applied.base, applied.is_original))
    return model


def write_back(model: M) -> M:
    """Write the trained slices into the weights, after something other than an optimizer's step has changed them.

    Each step of a torch optimizer does this automatically. Call it after any other change of the slices: an average
    over steps or models (EMA, SWA), a search without gradients, or plain assignment. Until then the forward pass uses
    the previous weights; state dicts and `restore` use the slices as they are.

    With `S2FTConfig(write_back=False)` it does nothing: the forward pass reads the slices. Under FSDP2 all processes
    must call it, also before a checkpoint: state dicts there have the weights as they are.

    Example:
        >>> for _, layer in selective_layers(model):  # from hf_farms.s2ft.surgery
        ...     layer.selected.data.mul_(0.5)
        >>> write_back(model)

    Args:
        model: with S2FT on it, also inside a wrapper (DDP, AveragedModel, torch.compile); changed in place.

    Returns:
        The model.
    """
    layers = [layer for _, layer in selective_layers(model)]
    one_engine(model)
    if not layers:
        warnings.warn(
            f"write_back has no effect: {type(model).__name__} has no S2FT on it. Call apply_s2ft(model) first.",
            NoEffectWarning,
            stacklevel=2,
        )
    for layer in layers:
        layer.after_step()
    return model


def selection_of(model: nn.Module) -> Selection | None:
    """Return the selection that S2FT trains in this model, or None for a plain model."""
    applied: _Applied | None = getattr(model, MARK, None)
    return None if applied is None else applied.selection


def base_of(model: nn.Module) -> KeptBase | None:
    """Return the base of the training of this model: with S2FT on it, or restored; None if it is not known."""
    for candidate in (model, unwrapped(model)):
        applied: _Applied | None = candidate.__dict__.get(MARK)
        if applied is not None:
            return KeptBase(applied.selection, applied.base, applied.is_original)
        kept: KeptBase | None = candidate.__dict__.get(KEPT)
        if kept is not None:
            return kept
    return None


def replace_base(model: nn.Module, slices: dict[str, StoredSlice], *, is_original: bool) -> None:
    """Replace the base of the training of a model with S2FT on it, for instance by that of a checkpoint.

    Args:
        model: changed in place.
        slices: as in `KeptBase`.
        is_original: as in `KeptBase`.
    """
    applied: _Applied = getattr(model, MARK)
    owner = model if MARK in model.__dict__ else unwrapped(model)
    setattr(owner, MARK, replace(applied, base=slices, is_original=is_original))


def share_base(model: nn.Module) -> None:
    """Take the base of the training from the first process, where an engine shards the weights.

    With `cpu_ram_efficient_loading` of accelerate, the other processes had no weights when S2FT was applied.

    Args:
        model: with S2FT on it; changed in place, on all processes.
    """
    engine, kept = one_engine(model), base_of(model)
    assert kept is not None
    if engine.is_collective:
        layers = {f"{plain_name(name)}.weight": layer for name, layer in selective_layers(model)}
        slices = {
            name: replace(part, values=engine.of_first(layers[name], part.values)) for name, part in kept.slices.items()
        }
        replace_base(model, slices, is_original=kept.is_original)


def selective_layers(model: nn.Module) -> Iterator[tuple[str, SelectiveLayer]]:
    """Yield the names of the layers with trained channels, and the layers."""
    for name, module in model.named_modules():
        if isinstance(module, SelectiveLayer):
            yield name, module


def _is_original(model: nn.Module) -> bool:
    """Return whether the weights are without an earlier training of S2FT; warn if they are not."""
    kept: KeptBase | None = model.__dict__.get(KEPT)
    if kept is None:
        return True
    untouched = all(
        same_bits(take(model.get_parameter(name), part.dim, part.indices).cpu(), part.values)
        for name, part in kept.slices.items()
    )
    if kept.is_original and untouched:
        return True
    warnings.warn(
        "the base of the new adapter is the model as it is now, with an earlier training of S2FT in its weights, so "
        "that the adapter names no base model. For an adapter of the base model, load that first, or unmerge the "
        "earlier adapter.",
        HfFarmsWarning,
        stacklevel=4,
    )
    return False
