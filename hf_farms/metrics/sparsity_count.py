"""How many weights of a model are zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hf_farms.blocks import BlockReader, BlockSource, ModelBlockSource, count_zeros

__all__ = ["Zeros", "count_model_zeros"]


@dataclass(frozen=True)
class Zeros:
    """Zeros of a model.

    Attributes:
        blocks: zeros and weights of the layers of each block.
        num_parameters: all parameters of the model, tied ones once.
        num_zero_parameters: zeros among them.
    """

    blocks: tuple[tuple[int, int], ...]
    num_parameters: int
    num_zero_parameters: int

    @property
    def num_zeros(self) -> int:
        """Zeros in the layers of the blocks."""
        return sum(zeros for zeros, _ in self.blocks)

    @property
    def num_weights(self) -> int:
        """Weights in the layers of the blocks."""
        return sum(weights for _, weights in self.blocks)

    @property
    def sparsity(self) -> float:
        """Zeros as a fraction of the layers of the blocks."""
        return self.num_zeros / self.num_weights

    @property
    def parameter_sparsity(self) -> float:
        """Zeros as a fraction of all parameters."""
        return self.num_zero_parameters / self.num_parameters


def count_model_zeros(model: nn.Module | BlockSource, *, progress: Callable[[int, int], None] | None = None) -> Zeros:
    """Count the zeros of a model.

    Layers are those that are pruned: every linear layer or expert inside the blocks but routers.

    Args:
        model: any model with layers, or its blocks, which may lie on disk; not modified.
        progress: called with blocks done and blocks in all.

    Raises:
        ModelError: the model has no layers.
    """
    source: BlockSource = ModelBlockSource(model) if isinstance(model, nn.Module) else model
    blocks = []
    for index in range(len(source)):
        blocks.append(_count_block(source, index))
        if progress is not None:
            progress(index + 1, len(source))
    parameters, zeros = source.count_parameters()
    return Zeros(tuple(blocks), parameters, zeros)


def _count_block(source: BlockReader, index: int) -> tuple[int, int]:
    zeros = weights = 0
    for layer in source.open(index).layers:
        if layer.role != "router":
            weight = layer.read()
            zeros += count_zeros(weight)
            weights += weight.numel()
    return zeros, weights
