"""Estimate the cost of one training step from shapes, to bound the share of the time that measuring takes.

Costs are multiply-adds in products with the weights of the blocks. Attention, head and optimizer are left out, so that
a step rather costs more, and measuring a smaller share. Nothing depends on the clock: the same training decides the
same on every machine of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.blocks import BlockMetadata, ModelBlockSource
from hf_farms.blocks.partitioned import whole_numel, whole_shape

__all__ = ["MEASURING_FACTOR", "StepCost", "measuring_factor"]

# Time of a multiply-add of a measurement (eigenvalues) over one of a training step (products of matrices), by type of
# device. CPU: between 3 and 7, measured by tests/benchmarks/lr_callback.py. CUDA: from published times of batched
# solvers, not measured.
MEASURING_FACTOR = {"cpu": 5.0, "cuda": 100.0}


def measuring_factor(device: str) -> float:
    """Return the relative time of a measurement's multiply-add; other accelerators count as CUDA."""
    return MEASURING_FACTOR.get(device, MEASURING_FACTOR["cuda"])


class StepCost:
    """Count the multiply-adds of the blocks in one step, by hooks that are removed after it.

    A compiled model runs no hooks: the cost stays 0.

    Args:
        source: the blocks of the model.
        recomputes: whether activation checkpointing runs each block twice.

    Attributes:
        model: without wrappers.
    """

    def __init__(self, source: ModelBlockSource, *, recomputes: bool) -> None:
        self.model = source.model
        self._recomputes = recomputes
        self._forward = self._backward = 0.0
        self._hooks = [
            module.register_forward_hook(_Count(self, source, source.metadata(index)))
            for index, module in enumerate(source.modules)
        ]

    @property
    def multiply_adds(self) -> float:
        """The cost of the step so far."""
        # A block that runs twice has been counted twice, and is differentiated once.
        return self._forward + self._backward / (2 if self._recomputes else 1)

    def add(self, forward: float, backward: float) -> None:
        """Add the cost of one run of a block."""
        self._forward += forward
        self._backward += backward

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _Count:
    """A forward hook of a block."""

    def __init__(self, cost: StepCost, source: ModelBlockSource, block: BlockMetadata) -> None:
        self._cost = cost
        self._all, self._trained = _weights(source, block)
        convolutions = [layer.kind in ("conv", "complex") for layer in block.layers]
        self._any, self._only = any(convolutions), all(convolutions)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        hidden = next(_tensors(output), None)
        if hidden is None or hidden.ndim < 2 or not hidden.numel():
            return
        channels_first = self._any if hidden.ndim > 3 else self._only
        positions = hidden.numel() / hidden.shape[1 if channels_first else -1]
        # Backward: gradients of the inputs, and of the weights that are trained.
        self._cost.add(positions * self._all, positions * (self._all + self._trained))


def _weights(source: ModelBlockSource, block: BlockMetadata) -> tuple[float, float]:
    """Return how many weights of a block a position is multiplied with, all and trained ones."""
    config = getattr(source.model, "config", None)
    config = getattr(config, "text_config", None) or config
    everything = trained = 0.0
    for layer in block.layers:
        size = float(math.prod(layer.shape))
        if layer.kind == "expert":
            # One expert of this matrix; a token is multiplied with some of them.
            total = whole_shape(source.model.get_parameter(layer.parameter))[0]
            size *= min(1.0, float(getattr(config, "num_experts_per_tok", None) or 1) / max(1, total))
        everything += size
        module = source.model.get_submodule(layer.parameter.rpartition(".")[0])
        trained += size * _trained_share(module, layer.parameter.rpartition(".")[2])
    return everything, trained


def _trained_share(module: nn.Module, attribute: str) -> float:
    """Return the share of a weight whose gradient is computed: all, none, or a slice of S2FT beside it."""
    weight = getattr(module, attribute)
    if weight.requires_grad:
        return 1.0
    size, ndim = whole_numel(weight), len(whole_shape(weight))
    trained = [p for p in module.parameters(recurse=False) if p.requires_grad and len(whole_shape(p)) == ndim]
    return min(1.0, sum(map(whole_numel, trained)) / size) if size else 0.0


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in the output of a block, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
