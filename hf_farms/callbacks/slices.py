"""The trained slices in the optimizer of a Trainer, and in its checkpoints.

A checkpoint's weights are in the dtype of the model; the float32 slices travel inside optimizer.pt, as an entry of the
first group, which optimizers carry along and do not read.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.s2ft.surgery import selection_of, selective_layers

__all__ = ["check_optimizer", "load_slices", "save_slices_with_optimizer", "swap_in_slices"]

KEY = "s2ft"
KEEPS = "_hf_farms_s2ft_keeps"

State = dict[str, Any]


def swap_in_slices(optimizer: torch.optim.Optimizer, model: nn.Module, frozen: Container[nn.Parameter] = ()) -> None:
    """Put the slices in the place of their weights, in the same groups, and everything else out.

    Args:
        optimizer: the innermost one.
        model: with the slices.
        frozen: what did not learn before, so that no group has it; slices of these come into the first group.

    Raises:
        ValueError: the optimizer takes no other parameters than those that it was made with.
    """
    _check_takes_others(optimizer)
    slices = {layer.weight: layer.selected for _, layer in selective_layers(model)}
    for group in optimizer.param_groups:
        group["params"] = [slices[parameter] for parameter in group["params"] if parameter in slices]
    optimizer.param_groups[0]["params"] += [part for weight, part in slices.items() if weight in frozen]
    optimizer.state.clear()


def _check_takes_others(optimizer: torch.optim.Optimizer) -> None:
    """Adagrad of older torch makes the state of each parameter when it is made itself, and misses it in `step`."""
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
    """Refuse an optimizer that would train nothing, or something else.

    Raises:
        ValueError: it holds other parameters than those that train.
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
    """From now on the optimizer's state dict holds the slices too.

    Args:
        optimizer: the innermost one.
        model: with the slices.
        lengths: parameters in each group before the slices were handed over: that is what the optimizer of a resumed
            run has when it loads the state, so its layout is kept. None: the slices were there from the start.
    """
    if hasattr(optimizer, KEEPS):
        return
    layers = dict(selective_layers(model))
    selection = selection_of(model)
    assert selection is not None
    channels = {name: list(found) for name, found in selection.channels.items()}

    def add(optimizer: torch.optim.Optimizer, state: State) -> None:
        kept: State = {
            "channels": channels,
            "slices": {name: layer.selected.detach() for name, layer in layers.items()},
        }
        kept["bases"] = {name: layer.slice_of_weight() for name, layer in layers.items() if not layer.s2ft_write_back}
        if lengths is not None:
            kept["state"] = _by_name(optimizer, state, {layer.selected: name for name, layer in layers.items()})
            _renumber_parameters(state, lengths)
        state["param_groups"][0][KEY] = kept

    def fit(optimizer: torch.optim.Optimizer, state: State) -> State | None:
        if "state" not in state["param_groups"][0].get(KEY, {}):
            return None
        state = {**state, "param_groups": [dict(group) for group in state["param_groups"]]}
        _renumber_parameters(state, [len(group["params"]) for group in optimizer.param_groups])
        return state

    # By now the optimizer has the slices only, so a training that goes on from a checkpoint needs the way back too.
    hooks = optimizer.register_state_dict_post_hook(add), optimizer.register_load_state_dict_pre_hook(fit)
    setattr(optimizer, KEEPS, hooks)


def load_slices(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Go on with the slices, and the optimizer's state, of the checkpoint that has just been loaded.

    Raises:
        ValueError: the checkpoint trained other channels.
    """
    found = [group.pop(KEY) for group in optimizer.param_groups if KEY in group]
    if not found:
        return
    kept = found[0]
    selection = selection_of(model)
    assert selection is not None
    if {name: tuple(channels) for name, channels in kept["channels"].items()} != dict(selection.channels):
        raise ValueError(
            "selection must be that of the checkpoint, got another one: base model, calibration data or config differ. "
            "Pass S2FTCallback(selection=load_selection(CHECKPOINT)), from hf_farms.s2ft.saving."
        )
    for name, layer in selective_layers(model):
        layer.resume(kept["slices"][name], kept["bases"].get(name))
        if "state" in kept:
            optimizer.state[layer.selected] = _moved(kept["state"][name], layer.selected.device)


def _by_name(optimizer: torch.optim.Optimizer, state: State, names: dict[Tensor, str]) -> State:
    """The state of each slice, by the name of its layer."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[parameter]: state["state"].get(number, {}) for number, parameter in enumerate(parameters)}


def _renumber_parameters(state: State, lengths: Sequence[int]) -> None:
    """So many parameters in each group, without a state."""
    state["state"] = {}
    start = 0
    for group, length in zip(state["param_groups"], lengths, strict=True):
        group["params"] = list(range(start, start + length))
        start += length


def _moved(state: State, device: torch.device) -> State:
    """Counters stay on the CPU, where optimizers keep them unless they are fused."""
    return {
        name: value.to(device) if isinstance(value, Tensor) and value.ndim else value for name, value in state.items()
    }
