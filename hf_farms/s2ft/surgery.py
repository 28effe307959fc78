"""Plain model -> model of which a few channels train -> plain model, in place."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_farms.blocks import LayerMetadata, ModelBlockSource
from hf_farms.blocks.coupling import (
    Structure,
    check_movable,
    coupled_structures,
    module_channels,
    permute_structure,
    undo_orders,
)
from hf_farms.blocks.layouts import KNOWN
from hf_farms.config import S2FTConfig
from hf_farms.errors import ModelError, NoEffectWarning
from hf_farms.s2ft.checks import check_module, check_plain, check_unshared
from hf_farms.s2ft.layers import InOriginalOrder, SelectiveLayer, ordered_class, selective_class
from hf_farms.s2ft.selection import Batches, Selection, select_channels

__all__ = ["apply_s2ft", "restore", "selection_of", "selective_layers", "summary", "write_back"]

# Where a model keeps what `restore` needs.
MARK = "_hf_farms_s2ft"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class _Applied:
    selection: Selection
    learned: frozenset[str]


def apply_s2ft(
    model: nn.Module,
    config: S2FTConfig | None = None,
    *,
    calibration: Batches | None = None,
    exclude: Selection | Sequence[Selection] = (),
    selection: Selection | None = None,
) -> Selection:
    """Make a few heads and channels of a model the only parameters that train (S2FT, arXiv 2412.06289).

    Everything else is frozen. Build the optimizer afterwards, over the parameters with `requires_grad`; after each of
    its steps the weights follow (after anything else that changes slices, call `write_back`). State dicts and
    `save_pretrained` write the plain model, `hf_farms.s2ft.saving.save_selection` what is trained of it. `restore` ends
    it. Casts of the model (`model.to(torch.bfloat16)`) leave the slices in float32.

    Memory: the trained slices, in float32 under half precision weights. Layout "permuted" copies one weight at a time
    here, and every permuted weight in a state dict.

    Args:
        model: a transformers model in memory; changed in place.
        config: budget, roles, strategy and layout.
        calibration: batches for the strategies that need data, as in `select_channels`.
        exclude: selections to share no channel with.
        selection: train these channels instead of choosing some, for instance those of a checkpoint.

    Returns:
        What is trained; empty, and nothing is changed, where the model has neither attention nor feed-forward layers.

    Raises:
        ValueError: as `select_channels`; or the model has S2FT on it already.
        ModelError: a model that is quantised, sharded, offloaded, not loaded, or has adapters on it.
    """
    check_plain(model)
    if selection is None:
        selection = select_channels(model, config, calibration=calibration, exclude=exclude)
    elif config is not None and config != selection.config:
        raise ValueError("config must be left out beside a selection, which has its own, got both.")
    if not len(selection):
        return selection
    source = ModelBlockSource(model)
    plan = _plan(source.model, source, selection)
    learned = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if selection.config.layout == "permuted":
        _permute(source.model, source, selection)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # In the order of the model, whatever that of the selection is: files have their layers sorted by name.
    for module in [module for module in model.modules() if module in plan]:
        index, inputs = plan[module]
        orders = getattr(module, "s2ft_orders", {})
        plain = getattr(module, "s2ft_plain_class", type(module))
        layer: Any = module
        layer.__class__ = selective_class(plain)
        layer.s2ft_orders, layer.s2ft_plain_class = orders, plain
        layer.select(index, inputs=inputs, write_back=selection.config.write_back)
    setattr(model, MARK, _Applied(selection, learned))
    return selection


def restore(model: M) -> M:
    """Make it a plain model again, with the trained weights, and everything learning that learned before.

    Args:
        model: changed in place; a plain model is left as it is.
    """
    applied: _Applied | None = model.__dict__.pop(MARK, None)
    if applied is None:
        return model
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
    return model


def write_back(model: M) -> M:
    """Write the trained slices into the weights, after something other than an optimizer's step has changed them.

    After a step of a torch optimizer this happens by itself. Call it where slices were set in another way: an average
    over steps or models (EMA, SWA), a search without gradients, or plain assignment. Until then the forward pass has
    the weights of before; state dicts and `restore` take the slices as they are.

    With `S2FTConfig(write_back=False)` nothing is to be written: the forward pass reads the slices themselves.

    Example:
        >>> for _, layer in selective_layers(model):  # from hf_farms.s2ft.surgery
        ...     layer.selected.data.mul_(0.5)
        >>> write_back(model)

    Args:
        model: with S2FT on it, also inside a wrapper (DDP, AveragedModel, torch.compile); changed in place.
    """
    layers = [layer for _, layer in selective_layers(model)]
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
    """What is trained of this model; None for a plain one."""
    applied: _Applied | None = getattr(model, MARK, None)
    return None if applied is None else applied.selection


def selective_layers(model: nn.Module) -> Iterator[tuple[str, SelectiveLayer]]:
    """The layers with trained channels, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, SelectiveLayer):
            yield name, module


def summary(model: nn.Module) -> dict[str, float]:
    """Trained parameters, their share of the plain model's, and trained channels by role.

    Args:
        model: with S2FT on it.
    """
    selection = selection_of(model)
    assert selection is not None, "the model must have S2FT on it"
    source = ModelBlockSource(model)
    roles = {layer.name: layer.role for index in range(len(source)) for layer in source.metadata(index).layers}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    channels: dict[str, float] = defaultdict(int)
    for name, found in selection.channels.items():
        channels[f"channels/{roles[name]}"] += len(found)
    trained = sum(layer.selected.numel() for _, layer in selective_layers(model))
    share = trained / (parameters - trained)
    return {"trainable_parameters": trained, "trainable_share": share, **channels}


def _plan(model: nn.Module, source: ModelBlockSource, selection: Selection) -> dict[nn.Module, tuple[Tensor, bool]]:
    """For each trained module its channels, as they will lie, and whether they are inputs."""
    layers = {layer.name: layer for index in range(len(source)) for layer in source.metadata(index).layers}
    permuted = selection.config.layout == "permuted"
    rows: dict[nn.Module, list[Tensor]] = defaultdict(list)
    inputs: dict[nn.Module, bool] = {}
    check_unshared(model, [layers[name] for name in selection.channels if name in layers])
    for name, channels in selection.channels.items():
        layer = _layer(layers, name, channels)
        module = model.get_submodule(layer.parameter.rpartition(".")[0])
        check_module(module, name)
        index = torch.arange(len(channels)) if permuted else torch.tensor(channels)
        inputs[module] = layer.role in ("o", "down")
        weight = model.get_parameter(layer.parameter)
        features = weight.shape[1 if layer.part.transposed else 0]
        rows[module].append(index if inputs[module] else module_channels(layer, features)[index])
    return {module: (torch.cat(found).sort().values, inputs[module]) for module, found in rows.items()}


def _layer(layers: dict[str, LayerMetadata], name: str, channels: Sequence[int]) -> LayerMetadata:
    layer = layers.get(name)
    if layer is None:
        raise ValueError(f"selection must name layers of this model, got {name!r}. Take one that was made for it.")
    size = layer.shape[1 if layer.role in ("o", "down") else 0]
    if not channels or list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= size:
        raise ValueError(
            f"selection must have ascending channels from 0 to {size - 1} in {name}, got {list(channels)[:3]} ... "
            f"{list(channels)[-1:]}."
        )
    return layer


def _permute(model: nn.Module, source: ModelBlockSource, selection: Selection) -> None:
    """Selected units first, on both sides of every structure."""
    model_type = getattr(source.config, "model_type", type(model).__name__)
    if model_type not in KNOWN:
        raise ModelError(
            f"layout 'permuted' must know what is coupled in a model, got {model_type}.", hint="Use layout='indexed'."
        )
    blocks = [source.metadata(index) for index in range(len(source))]
    structures = [s for block in blocks for s in coupled_structures(block, source.config, whole_groups=True)]
    chosen = [(structure, units) for structure in structures if (units := _units(structure, selection))]
    for structure, _ in chosen:
        check_movable(model, structure)
    members = [member.layer for structure, _ in chosen for member in structure.members]
    check_unshared(model, members)
    if unknown := sorted(set(selection.channels) - {layer.name for layer in members}):
        raise ValueError(
            f"selection must be of heads or channels for layout 'permuted', got {unknown[0]}. Use layout='indexed'."
        )
    for structure, units in chosen:
        order = [*units, *sorted(set(range(structure.units)) - set(units))]
        for module, orders in permute_structure(model, structure, order).items():
            ordered: Any = module
            ordered.s2ft_plain_class = type(module)
            ordered.s2ft_orders = orders
            module.__class__ = ordered_class(type(module))


def _units(structure: Structure, selection: Selection) -> list[int]:
    """The selected units.

    Raises:
        ValueError: parts of units, or not the same in each layer.
    """
    found = {member: selection.channels.get(member.layer.name, ()) for member in structure.members}
    units = sorted({c // member.width for member, channels in found.items() for c in channels})
    for member, channels in found.items():
        if channels and tuple(member.channels(units).tolist()) != tuple(channels):
            raise ValueError(
                f"selection must have whole heads (groups of them where they share keys and values), the same in all "
                f"layers of a block, for layout 'permuted', got others in {member.layer.name}. Use layout='indexed'."
            )
    return units
