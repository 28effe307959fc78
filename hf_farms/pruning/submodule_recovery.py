"""Recovery by submodules (arXiv 2510.14444): fit attention and MLP of a pruned block to the outputs of the dense ones.

Both get the same inputs, those of the pruned model, so that no hidden states of the dense model are needed. Errors are
relative to the variance of the dense outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hf_farms.blocks import Block
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.pruning.measuring import Run
from hf_farms.pruning.submodule_calls import State, SubmoduleCalls, float32_state, recorded_calls
from hf_farms.pruning.submodules import Submodule, find_submodules, whole_block
from hf_farms.reports import RecoveredPart

__all__ = ["SubmoduleRecovery"]

# One of so many sequences is held out: they decide whether a fit is accepted.
HELD_OUT = 8
# Gradients of a normalised loss over millions of weights may be far below the default of Adam, 1e-8.
EPSILON = 1e-15


class SubmoduleRecovery:
    """Fit the submodules of a block, one after another.

    Time: for each pass about three forward passes of the calibration data through the submodules, and three more to
    record inputs and targets. Memory: a copy of the block's dense weights; inputs and outputs of one submodule for all
    sequences (in `folder`, if given); and its weights in float32 five times (weights, gradients, two moments of Adam,
    and those before).

    Args:
        block: not pruned yet.
        folder: folder for inputs and outputs; None to keep them in memory.
    """

    def __init__(self, block: Block, folder: Path | None = None) -> None:
        self._block, self._folder = block, folder
        self._parts = find_submodules(block)
        trained = {id(part.module.get_parameter(name)) for part in self._parts for name in part.trained}
        names = block.module.named_parameters(remove_duplicate=False)
        self._dense = {name: p.detach().clone() for name, p in names if id(p) in trained}

    def fit(self, runs: Sequence[Run], config: PruneConfig) -> tuple[RecoveredPart, ...]:
        """Fit the kept weights of each submodule; where the error on held-out sequences does not fall, keep them."""
        if not self._can_be_run(runs[0]):
            self._parts = [whole_block(self._block)]
        return tuple(self._fit(part, runs, config) for part in self._parts)

    def _can_be_run(self, run: Run) -> bool:
        """Return whether each submodule is called with hidden states, and returns them."""
        try:
            return all(recorded_calls(part.module, run[0]) for part in self._parts)
        except ModelError:
            return False

    def _fit(self, part: Submodule, runs: Sequence[Run], config: PruneConfig) -> RecoveredPart:
        pruned = float32_state(part.module)
        calls = SubmoduleCalls(part.module, self._folder)
        calls.record(runs, pruned | self._dense_weights(part))
        # Without variance the error is absolute.
        scale = calls.variance() or 1.0
        held_out, fitted = _split(len(calls))
        before = calls.error(held_out, pruned) / scale
        weights = {name: pruned[name].clone() for name in part.trained}
        _minimise(calls, fitted, pruned, weights, config, scale=scale)
        rounded = {name: _rounded(weight, part.module.get_parameter(name)) for name, weight in weights.items()}
        del weights
        after = calls.error(held_out, pruned | {name: weight.float() for name, weight in rounded.items()}) / scale
        # Not `>=`: NaN is refused too.
        accepted = after < before
        if accepted:
            for name, weight in rounded.items():
                part.module.get_parameter(name).copy_(weight)
        return RecoveredPart(
            name=part.name, error_before=before, error=after if math.isfinite(after) else None, accepted=accepted
        )

    def _dense_weights(self, part: Submodule) -> State:
        path = next(name for name, module in self._block.module.named_modules() if module is part.module)
        return {name: self._dense[f"{path}.{name}" if path else name].float() for name in part.trained}


def _split(count: int) -> tuple[list[int], list[int]]:
    """Return the calls that are held out, and those that are fitted; a single call is both."""
    held_out = list(range(HELD_OUT - 1, count, HELD_OUT)) or [count - 1]
    return held_out, [index for index in range(count) if index not in held_out] or held_out


def _minimise(
    calls: SubmoduleCalls, indices: Sequence[int], fixed: State, weights: State, config: PruneConfig, *, scale: float
) -> None:
    """Minimise the squared error in place by Adam, one sequence a step; zeros stay zero.

    The learning rate is relative to the size of each matrix, because models, and matrices of one model, differ by an
    order of magnitude. It falls to zero along a cosine.
    """
    masks = {name: weight != 0 for name, weight in weights.items()}
    rates = [config.recover_rate * _rms(weight, masks[name]) for name, weight in weights.items()]
    groups = [{"params": [weight.requires_grad_()]} for weight in weights.values()]
    optimizer = torch.optim.Adam(groups, eps=EPSILON)
    order = list(indices) * config.recover_passes
    for step, index in enumerate(order):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / len(order))) / 2
        with torch.enable_grad():
            loss = calls.difference(index, fixed | weights).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        for name, weight in weights.items():
            if weight.grad is not None:
                weight.grad *= masks[name]
        optimizer.step()
    for weight in weights.values():
        weight.requires_grad_(False)


def _rms(weight: Tensor, mask: Tensor) -> float:
    return math.sqrt(float(weight.square().sum(dtype=torch.float64)) / max(1, int(mask.sum())))


def _rounded(weight: Tensor, pruned: Tensor) -> Tensor:
    """Round a weight to the dtype of the model; weights that were kept must not round to zero."""
    rounded = weight.to(pruned.dtype)
    smallest = torch.full_like(rounded, torch.finfo(rounded.dtype).tiny).copysign(rounded)
    return torch.where((rounded == 0) & (pruned != 0), smallest, rounded)
