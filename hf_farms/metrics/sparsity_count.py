"""Count the zero weights of a model, per block and in total."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hf_farms.blocks import BlockReader, BlockSource, ModelBlockSource, count_zeros

__all__ = ["Zeros", "count_model_zeros"]


@dataclass(frozen=True)
class Zeros:
    """Counts of zeros in a model.

    Attributes:
        blocks: zeros and weights in the layers of each block.
        num_parameters: all parameters of the model; tied ones count once.
        num_zero_parameters: zeros among all parameters.
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

    Layers are those that pruning considers: all linear layers and experts inside the blocks, except routers. Costs one
    pass over the weights.

    Args:
        model: any model with layers, or its blocks, which may be on disk; not modified.
        progress: called with the number of finished blocks and of all blocks.

    Raises:
        ModelError: the model has no layers.
    """
    source: BlockSource = ModelBlockSource(model) if isinstance(model, nn.Module) else model
    blocks = []
    if progress is not None:
        progress(0, len(source))
    for index in range(len(source)):
        blocks.append(_count_block(source, index))
        if progress is not None:
            progress(index + 1, len(source))
    parameters, zeros = source.count_parameters()
    return Zeros(tuple(blocks), parameters, zeros)


def _count_block(source: BlockReader, index: int) -> tuple[int, int]:
    zeros = weights = 0
    for layer in source.open(index).layers:
        if layer.counts:
            weight = layer.read()
            zeros += count_zeros(weight)
            weights += weight.numel()
    return zeros, weights
