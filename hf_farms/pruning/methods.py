"""What a pruning method is: the statistic of a layer's inputs, and the function that removes weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hf_farms.pruning.patterns import Removal
from hf_farms.registries import METHODS, load

__all__ = ["PruningMethod", "Statistic", "pruning_method"]


class Statistic(Protocol):
    """A statistic of the inputs of a layer, or of several layers with the same inputs."""

    num_tokens: int

    def __init__(self, width: int, device: torch.device) -> None:
        """Nothing measured yet, for so many inputs."""

    @staticmethod
    def nbytes(width: int) -> int:
        """Memory for so many inputs."""

    @staticmethod
    def tokens_needed(width: int) -> int:
        """Tokens that so many inputs should have; with fewer the pruner warns."""

    def add(self, inputs: Tensor) -> None:
        """Count the tokens of `(..., width)` inputs."""

    def merge(self, other: Self) -> None:
        """Count the tokens of another one too."""

    def is_finite(self) -> bool:
        """Whether no input was NaN or infinite."""

    def prepared(self, name: str) -> Any:
        """What the method's `prune` takes; `name` is for warnings."""


@dataclass(frozen=True)
class PruningMethod:
    """The functions of a method.

    Attributes:
        prune: weight `(out, in)`, the prepared statistic, the removal -> the pruned weight, a new tensor.
        statistic: of the layer's inputs; None where the method needs none.
    """

    prune: Callable[[Tensor, Any, Removal], Tensor]
    statistic: type[Statistic] | None = None


def pruning_method(name: str) -> PruningMethod:
    """Import the functions of a method.

    Raises:
        ValueError: no such method.
    """
    entry = METHODS[name]
    return PruningMethod(entry.load(), load(entry.statistic) if entry.statistic is not None else None)
