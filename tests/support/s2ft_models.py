"""Models with S2FT in real Trainers, and which of their weights are trained."""

import pytest
import torch
from models import tiny
from trainers import Tokens, arguments
from transformers import Trainer

from hf_farms import S2FTConfig
from hf_farms.s2ft.surgery import selective_layers

INDEXED, PERMUTED = S2FTConfig(budget=0.1), S2FTConfig(budget=0.1, layout="permuted")
TWO_PRODUCTS = S2FTConfig(budget=0.1, write_back=False)
LAYOUTS = pytest.mark.parametrize("config", [INDEXED, PERMUTED, TWO_PRODUCTS], ids=["indexed", "permuted", "two"])
EARLY = pytest.mark.parametrize("early", [True, False], ids=["early", "late"])


def trainer(folder, callback=None, *, early=True, model=None, make=Trainer, data=None, callbacks=(), **options):
    """A Trainer with the callback given to it, or added to it, and others given to it."""
    first = [*([callback] if callback is not None and early else []), *callbacks]
    run = make(
        model=tiny("llama") if model is None else model,
        args=arguments(folder, **{"max_steps": 4, **options}),
        train_dataset=data or Tokens(),
        eval_dataset=Tokens(8),
        callbacks=first,
    )
    if callback is not None and not early:
        run.add_callback(callback)
    return run


def plain(model):
    """The weights as a checkpoint has them: plain names, original order."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def inside(before, selection):
    """Which entries of each weight are trained."""
    found = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
    for name, channels in selection.channels.items():
        inputs = name.endswith(("o_proj", "down_proj"))
        found[f"{name}.weight"][(slice(None), list(channels)) if inputs else list(channels)] = True
    return found


def follows(model):
    """Whether every weight holds its slice."""
    return all(torch.equal(layer.slice_of_weight(), layer.selected.to(layer.weight.dtype)) for layer in layers(model))


def layers(model):
    return [layer for _, layer in selective_layers(model)]
