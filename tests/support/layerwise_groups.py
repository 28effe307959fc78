"""Optimizers whose blocks have learning rates of their own, without a Trainer."""

import torch
from models import tiny

from hf_farms.callbacks.groups import LayerwiseGroups

BLOCKS = [("model.layers.0",), ("model.layers.1",), ("model.layers.2",)]
FIRST = {name: factor for (name,), factor in zip(BLOCKS, (0.5, 1.5, 1.1), strict=True)}
SECOND = {name: factor for (name,), factor in zip(BLOCKS, (1.25, 0.75, 1.0), strict=True)}
IDS = torch.arange(24).reshape(2, 12)


class Counting(torch.optim.SGD):
    """Keeps a sum of rates in its groups, as schedule-free optimizers do; its step calls that of another class."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["sum"] = group.get("sum", 0.0) + group["lr"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 + group["sum"])
        return super().step(closure)


def model_and_groups(*, matrices):
    """Parameters by block, those outside last; `matrices` leaves only what Muon takes."""
    model = tiny("llama")
    groups = {block: [] for block in [*BLOCKS, None]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = parameter.ndim == 2 or not matrices
        if parameter.requires_grad:
            groups[next((block for block in BLOCKS if name.startswith(f"{block[0]}.")), None)].append(parameter)
    return model, groups


def attach(optimizer, groups):
    keys = {parameter: block for block, found in groups.items() if block for parameter in found}
    return LayerwiseGroups(optimizer, keys, "lr")


def backward(model, scaler=None):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    (scaler.scale(loss) if scaler else loss).backward()
