"""Put the trained slices into the optimizer of a Trainer, and into its checkpoints.

The weights of a checkpoint have the dtype of the model. The float32 slices are stored in optimizer.pt, as an entry of
the first group, which optimizers keep and ignore. So are the slices of the base: no event of a Trainer names the folder
that it resumes, whose adapter has them too. Under FSDP2 all of them are sharded there like the slices, so that
torch.distributed.checkpoint divides them anew for another number of processes.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from hf_farms.blocks.wrappers import plain_name
from hf_farms.callbacks.trainer import SLICES_MARK, get_mark, set_mark
from hf_farms.errors import HfFarmsWarning
from hf_farms.s2ft.engines import one_engine
from hf_farms.s2ft.layers import SLICE, SelectiveLayer
from hf_farms.s2ft.surgery import base_of, replace_base, selection_of, selective_layers

__all__ = [
    "check_optimizer",
    "hide_slices",
    "load_slices",
    "save_slices_from_the_first_step",
    "save_slices_with_optimizer",
    "swap_in_slices",
]

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
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    lengths: Sequence[int] | None,
    *,
    with_slices: bool = True,
) -> None:
    """Add the slices to the optimizer's state dict from now on.

    Args:
        optimizer: without wrappers.
        model: with the slices.
        lengths: number of parameters in each group before `swap_in_slices`. The optimizer of a resumed run has these
            groups when it loads the state, so the state dict keeps their layout. None: the optimizer was created with
            the slices.
        with_slices: False: the engine's own checkpoint has the slices, and only those of the base are added.
    """
    if get_mark(optimizer, SLICES_MARK) is not None:
        return
    layers = _layers(model)
    selection = selection_of(model)
    assert selection is not None
    channels = {name: list(indices) for name, indices in selection.channels.items()}

    def add_slices(optimizer: torch.optim.Optimizer, state: State) -> None:
        engine = one_engine(model)
        stored: State = {
            "channels": channels,
        }
        if with_slices:
            stored["slices"] = {name: layer.selected.detach() for name, layer in layers.items()}
        kept = base_of(model)
        parts = {name: kept.slices[f"{name}.weight"].values for name in layers} if kept is not None else {}
        stored["base"] = {f"{name}.weight": engine.like_slice(layers[name], part) for name, part in parts.items()}
        stored["base_is_original"] = kept is None or kept.is_original
        if with_slices:
            stored["bases"] = {
                name: layer.slice_of_weight() for name, layer in layers.items() if not layer.s2ft_write_back
            }
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


def hide_slices(model: Any) -> None:
    """Keep the slices out of the files of `save_pretrained` where the engine collects parameters itself (ZeRO-3)."""
    names = [f"{name}.{SLICE}" for name, _ in selective_layers(model)]
    model._keys_to_ignore_on_save = list({**dict.fromkeys(model._keys_to_ignore_on_save or ()), **dict.fromkeys(names)})


def save_slices_from_the_first_step(model: nn.Module) -> RemovableHandle:
    """Add the slices to the state dict of the first optimizer that steps with them.

    Under FSDP2 a checkpoint is loaded into the state dict of the optimizer, so that its entries must exist by then, and
    a Trainer loads it before `on_train_begin`. torch.distributed.checkpoint lets a new optimizer step once before that,
    at a rate of 0, to make its states.

    Args:
        model: with the slices; not kept alive.

    Returns:
        The handle that ends the waiting; a hook cannot remove itself.
    """
    owner = weakref.ref(model)

    def add_hooks(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        model = owner()
        if model is None:
            return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        sharded = one_engine(model).is_collective
        if sharded and any(id(layer.selected) in held for layer in _layers(model).values()):
            save_slices_with_optimizer(optimizer, model, None)

    handle: RemovableHandle = register_optimizer_step_post_hook(add_hooks)
    return handle


def load_slices(optimizer: torch.optim.Optimizer, model: nn.Module, *, is_resumed: bool = False) -> None:
    """Restore the slices and the optimizer's state from the checkpoint that has just been loaded, if any.

    Raises:
        ValueError: the checkpoint trained other channels.
    """
    engine = one_engine(model)
    entries = [group.pop(KEY) for group in optimizer.param_groups if KEY in group]
    if not entries:
        if is_resumed and engine.is_collective:
            warnings.warn(
                f"The checkpoint has no slices for training under {engine.name}: they continue from the weights, "
                "rounded to their dtype, and adapters have these weights as base. Resume a checkpoint that "
                "S2FTCallback wrote under the same engine.",
                HfFarmsWarning,
                stacklevel=3,
            )
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
    # A full state dict of torch.distributed.checkpoint has no empty dicts.
    bases = stored.get("bases", {})
    for name, layer in _layers(model).items() if "slices" in stored else ():
        layer.resume(stored["slices"][name], bases.get(name))
        if "state" in stored:
            optimizer.state[layer.selected] = _to_device(stored["state"][name], layer.selected.device)


def _layers(model: nn.Module) -> dict[str, SelectiveLayer]:
    """Return the trained layers by the names of the plain model: FSDP2 may wrap blocks for checkpointing."""
    return {plain_name(name): layer for name, layer in selective_layers(model)}


def _load_base(stored: State, model: nn.Module) -> None:
    """Take the slices of the base from a checkpoint: the model may have been loaded from that checkpoint."""
    kept, base = base_of(model), stored.get("base")
    assert kept is not None
    if base is not None:
        engine = one_engine(model)
        slices = {name: replace(part, values=engine.whole(base[name]).cpu()) for name, part in kept.slices.items()}
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
