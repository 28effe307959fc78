"""Recovery by submodules (arXiv 2510.14444): fit attention and MLP of a pruned block to those of the dense model.

The submodules get the inputs that they have in the pruned model. Their targets lead from its residual stream to that of
the dense model, so that the errors of earlier blocks are corrected too. Errors are relative to the variance of the
targets.

Submodules of a bfloat16 model run in bfloat16 where the hardware has units for it; weights, moments of Adam, targets
and errors are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from hf_farms.blocks import Block
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.kept_weights import root_mean_square, round_kept
from hf_farms.pruning.measuring import Run
from hf_farms.pruning.residual_stream import ResidualStream
from hf_farms.pruning.submodule_calls import State, SubmoduleCalls, fit_dtype, recorded_calls
from hf_farms.pruning.submodules import Submodule, find_submodules, whole_block
from hf_farms.reports import RecoveredPart

__all__ = ["SubmoduleRecovery"]

# Without acceptance sequences, one of so many is held out: they decide whether a fit is accepted.
HELD_OUT = 8
# Gradients of a normalized loss over millions of weights may be far below the default of Adam, 1e-8.
EPSILON = 1e-15
# Devices on which Adam updates a matrix in one pass over memory.
FUSED = frozenset({"cpu", "cuda"})


class SubmoduleRecovery:
    """Fit the submodules of a block, one after another.

    Time: for each pass about three forward passes of the calibration data through the submodules; three more through
    the block, one of them dense, to record inputs and targets. Memory, or `folder` for the first: hidden states of the
    calibration data, in float32 behind each submodule of the dense model, and for one submodule as input and as target;
    a copy of the block's dense weights; the weights of a submodule in float32 five times (weights, gradients, two
    moments of Adam, and those before).

    Args:
        block: not pruned yet.
        folder: folder for hidden states; None to keep them in memory.
    """

    def __init__(self, block: Block, folder: Path | None = None) -> None:
        self._block, self._folder = block, folder
        self._parts = find_submodules(block)
        trained = {id(part.module.get_parameter(name)) for part in self._parts for name in part.trained}
        names = block.module.named_parameters(remove_duplicate=False)
        self._dense = {name: p.detach().clone() for name, p in names if id(p) in trained}
        # Stream of the dense model after each part, for all sequences.
        places = [folder / f"dense-{i}" if folder else None for i in range(len(self._parts))]
        self._streams = [HiddenStates(place) for place in places]
        self._stream = ResidualStream(block.module, [part.module for part in self._parts])

    def dense_run(self) -> AbstractContextManager[None]:
        """Record the stream of the dense model while the dense block runs within the context."""
        return self._stream.watching(lambda index, _, after: self._streams[index].append(after))

    def fit(
        self, runs: Sequence[Run], config: PruneConfig, acceptance: Sequence[Run] = ()
    ) -> tuple[RecoveredPart, ...]:
        """Fit the kept weights of each submodule; where the error on other sequences does not fall, keep them.

        Args:
            runs: as of `BlockRecovery.fit`.
            config: passes and learning rate.
            acceptance: as of `BlockRecovery.fit`; without any, one of eight of `runs` is held out.
        """
        if not self._can_be_run(runs[0]):
            self._parts, self._stream.is_sum = [whole_block(self._block)], False
        return tuple(self._fit(index, runs, config, acceptance) for index in range(len(self._parts)))

    def _can_be_run(self, run: Run) -> bool:
        """Return whether each submodule is called with hidden states, and returns them."""
        try:
            return all(recorded_calls(part.module, run[0]) for part in self._parts)
        except ModelError:
            return False

    def _fit(self, index: int, runs: Sequence[Run], config: PruneConfig, acceptance: Sequence[Run]) -> RecoveredPart:
        part = self._parts[index]
        calls = SubmoduleCalls(part.module, self._folder, dtype=fit_dtype(part.module))
        self._record(calls, index, runs)
        held_out, fitted = _split(len(calls))
        if acceptance:
            fitted = list(range(len(calls)))
            self._record(calls, index, acceptance)
            # None, and so nothing is accepted, if these have no tokens that count.
            held_out = list(range(len(fitted), len(calls)))
        # Without variance the error is absolute.
        scale = calls.variance(held_out) or 1.0
        before = calls.error(held_out, {}) / scale
        if not math.isfinite(before):
            raise ModelError(
                f"outputs must be finite to be recovered, got NaN or infinity in {part.name}.",
                hint="Load the model in bfloat16 or float32, or prune with recover='none'.",
            )
        pruned = {name: part.module.get_parameter(name) for name in part.trained}
        weights = {name: weight.detach().float().clone() for name, weight in pruned.items()}
        _minimize(calls, fitted, weights, config, scale=calls.variance(fitted) or 1.0)
        rounded = {name: round_kept(weight, pruned[name]) for name, weight in weights.items()}
        del weights
        after = calls.error(held_out, rounded) / scale
        # Not `>=`: NaN is refused too.
        accepted = after < before
        if accepted:
            for name, weight in rounded.items():
                pruned[name].copy_(weight)
        return RecoveredPart(
            name=part.name, error_before=before, error=after if math.isfinite(after) else None, accepted=accepted
        )

    def _record(self, calls: SubmoduleCalls, index: int, runs: Sequence[Run]) -> None:
        """Record inputs and targets: what leads from the stream of the pruned model to that of the dense one.

        Where outputs are not simply added to the stream, the targets are the outputs of the dense part on these inputs.
        """
        if not self._stream.is_sum:
            dense = self._dense_weights(self._parts[index])
            calls.record(runs, lambda _, call, hidden: calls.run(call, hidden, dense))
            return
        before: list[Tensor] = []
        stream = ResidualStream(self._block.module, [part.module for part in self._parts])
        with stream.watching(lambda number, tensor, _: before.append(tensor) if number == index else None):
            calls.record(runs, lambda number, _, hidden: (self._streams[index][number] - before.pop(0)).view_as(hidden))

    def _dense_weights(self, part: Submodule) -> State:
        path = next(name for name, module in self._block.module.named_modules() if module is part.module)
        return {name: self._dense[f"{path}.{name}" if path else name] for name in part.trained}


def _split(count: int) -> tuple[list[int], list[int]]:
    """Return the calls that are held out, and those that are fitted; a single call is both."""
    held_out = list(range(HELD_OUT - 1, count, HELD_OUT)) or [count - 1]
    return held_out, [index for index in range(count) if index not in held_out] or held_out


def _minimize(
    calls: SubmoduleCalls, indices: Sequence[int], weights: State, config: PruneConfig, *, scale: float
) -> None:
    """Minimize the squared error in place by Adam, one sequence a step; zeros stay zero.

    The learning rate is relative to the size of each matrix, because models, and matrices of one model, differ by an
    order of magnitude. It falls to zero along a cosine.
    """
    rates = [config.effective_rate * root_mean_square(weight) for weight in weights.values()]
    optimizer = _adam(weights)
    order = list(indices) * config.passes_over(len(indices))
    for step, index in enumerate(order):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / len(order))) / 2
        with torch.enable_grad():
            loss = calls.difference(index, weights).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for weight in weights.values():
        weight.requires_grad_(False)


def _adam(weights: State) -> torch.optim.Adam:
    """Return an optimizer that updates the weights that are not zero."""
    groups = [{"params": [weight.requires_grad_()]} for weight in weights.values()]
    fused = all(weight.device.type in FUSED for weight in weights.values())
    optimizer = torch.optim.Adam(groups, eps=EPSILON, fused=fused)
    for weight in weights.values():
        # A second moment of infinity is kept, and makes every update zero: this saves a product with a mask each step.
        squares = torch.zeros_like(weight).masked_fill_(weight == 0, math.inf)
        steps = torch.zeros((), device=weight.device if fused else "cpu")
        optimizer.state[weight] = {"step": steps, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": squares}
    return optimizer
