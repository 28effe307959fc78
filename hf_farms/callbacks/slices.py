"""Put the trained slices into the optimizer of a Trainer, and into its checkpoints.

The weights of a checkpoint have the dtype of the model. The float32 slices are stored in optimizer.pt, as an entry of
the first group, which optimizers keep and ignore. So are the slices of the base: no event of a Trainer names the folder
that it resumes, whose adapter has them too.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.callbacks.trainer import SLICES_MARK, get_mark, set_mark
from hf_farms.errors import HfFarmsWarning
from hf_farms.s2ft.surgery import base_of, replace_base, selection_of, selective_layers

__all__ = ["check_optimizer", "load_slices", "save_slices_with_optimizer", "swap_in_slices"]

KEY = "s2ft"

State = dict[str, Any]


def swap_in_slices(optimizer: torch.optim.Optimizer, model: nn.Module, frozen: Container[nn.Parameter] = ()) -> None:
    """Replace the weights in the optimizer's groups by their slices, and remove all other parameters.

    Args:
        optimizer: without wrappers.
        model: with the slices.
        frozen: weights that were not trained before and are in no group; their slices go to the first group.

    Raises:
        ValueError: the optimizer does not accept new parameters.
    """
    _check_accepts_parameters(optimizer)
    slices = {layer.weight: layer.selected for _, layer in selective_layers(model)}
    for group in optimizer.param_groups:
        group["params"] = [slices[parameter] for parameter in group["params"] if parameter in slices]
    optimizer.param_groups[0]["params"] += [part for weight, part in slices.items() if weight in frozen]
    optimizer.state.clear()


def _check_accepts_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Reject Adagrad of older torch, which creates the state of each parameter in its constructor only."""
    if not isinstance(optimizer, torch.optim.Adagrad):
        return
    parameter = nn.Parameter(torch.zeros(1))
    probe = torch.optim.Adagrad([parameter])
    probe.state.clear()
    parameter.grad = torch.ones(1)
    try:
        probe.step()
    except KeyError:
        raise ValueError(
            f"S2FTCallback must be an argument of the Trainer for optim='adagrad' with torch {torch.__version__}, "
            "got it added later. Pass Trainer(callbacks=[S2FTCallback(...)]), or install a newer torch."
        ) from None


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Reject an optimizer that does not train exactly the trainable parameters.

    Raises:
        ValueError: its parameters are not those with `requires_grad`.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if held != trained:
        raise ValueError(
            f"optimizer must hold exactly the {len(trained)} trained slices, got {len(held & trained)} of them and "
            f"{len(held - trained)} other parameters. Build it after apply_s2ft(model), or leave it to the Trainer."
        )


def save_slices_with_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, lengths: Sequence[int] | None
) -> None:
    """Add the slices to the optimizer's state dict from now on.

    Args:
        optimizer: without wrappers.
        model: with the slices.
        lengths: number of parameters in each group before `swap_in_slices`. The optimizer of a resumed run has these
            groups when it loads the state, so the state dict keeps their layout. None: the optimizer was created with
            the slices.
    """
    if get_mark(optimizer, SLICES_MARK) is not None:
        return
    layers = dict(selective_layers(model))
    selection = selection_of(model)
    assert selection is not None
    channels = {name: list(indices) for name, indices in selection.channels.items()}

    def add_slices(optimizer: torch.optim.Optimizer, state: State) -> None:
        stored: State = {
            "channels": channels,
            "slices": {name: layer.selected.detach() for name, layer in layers.items()},
        }
        kept = base_of(model)
        stored["base"] = {name: part.values for name, part in kept.slices.items()} if kept is not None else {}
        stored["base_is_original"] = kept is None or kept.is_original
        stored["bases"] = {name: layer.slice_of_weight() for name, layer in layers.items() if not layer.s2ft_write_back}
        if lengths is not None:
            stored["state"] = _state_by_layer(
                optimizer, state, {layer.selected: name for name, layer in layers.items()}
            )
            _renumber_parameters(state, lengths)
        state["param_groups"][0][KEY] = stored

    def fit_layout(optimizer: torch.optim.Optimizer, state: State) -> State | None:
        if "state" not in state["param_groups"][0].get(KEY, {}):
            return None
        state = {**state, "param_groups": [dict(group) for group in state["param_groups"]]}
        _renumber_parameters(state, [len(group["params"]) for group in optimizer.param_groups])
        return state

    # The optimizer has only the slices now: a checkpoint of the first layout that is loaded later has to be adapted.
    hooks = optimizer.register_state_dict_post_hook(add_slices), optimizer.register_load_state_dict_pre_hook(fit_layout)
    set_mark(optimizer, SLICES_MARK, hooks)


def load_slices(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Restore the slices and the optimizer's state from the checkpoint that has just been loaded, if any.

    Raises:
        ValueError: the checkpoint trained other channels.
    """
    entries = [group.pop(KEY) for group in optimizer.param_groups if KEY in group]
    if not entries:
        return
    stored = entries[0]
    selection = selection_of(model)
    assert selection is not None
    if {name: tuple(channels) for name, channels in stored["channels"].items()} != dict(selection.channels):
        raise ValueError(
            "selection must be that of the checkpoint, got another one: base model, calibration data or config differ. "
            "Pass S2FTCallback(selection=load_selection(CHECKPOINT)), from hf_farms.s2ft.saving."
        )
    _load_base(stored, model)
    for name, layer in selective_layers(model):
        layer.resume(stored["slices"][name], stored["bases"].get(name))
        if "state" in stored:
            optimizer.state[layer.selected] = _to_device(stored["state"][name], layer.selected.device)


def _load_base(stored: State, model: nn.Module) -> None:
    """Take the slices of the base from a checkpoint: the model may have been loaded from that checkpoint."""
    kept, base = base_of(model), stored.get("base")
    assert kept is not None
    if base is not None:
        slices = {name: replace(part, values=base[name].cpu()) for name, part in kept.slices.items()}
        replace_base(model, slices, is_original=stored.get("base_is_original", kept.is_original))
        return
    warnings.warn(
        "The checkpoint was written by an earlier version, without the slices of the base model: adapters of this "
        "training have the weights that S2FT was applied to in this run as base. S2FTAdapter.from_training(model, "
        "base) makes one of the whole training.",
        HfFarmsWarning,
        stacklevel=4,
    )


def _state_by_layer(optimizer: torch.optim.Optimizer, state: State, names: dict[Tensor, str]) -> State:
    """Return the state of each slice, by the name of its layer."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[parameter]: state["state"].get(number, {}) for number, parameter in enumerate(parameters)}


def _renumber_parameters(state: State, lengths: Sequence[int]) -> None:
    """Give each group this number of parameters, without a state."""
    state["state"] = {}
    start = 0
    for group, length in zip(state["param_groups"], lengths, strict=True):
        group["params"] = list(range(start, start + length))
        start += length


def _to_device(state: State, device: torch.device) -> State:
    """Move tensors to the device; counters stay on the CPU, where optimizers keep them unless they are fused."""
    return {
        name: value.to(device) if isinstance(value, Tensor) and value.ndim else value for name, value in state.items()
    }
