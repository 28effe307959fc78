"""The methods by name: what each measures, and how it removes weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hf_farms.config import Method
from hf_farms.pruning.magnitude import magnitude_scores
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.sparsegpt import InputProducts, sparsegpt
from hf_farms.pruning.wanda import InputNorm, wanda_scores

__all__ = ["METHODS", "PruningMethod", "Statistic"]


class Statistic(Protocol):
    """What is measured on the inputs of a layer, or of several that are multiplied with the same."""

    num_tokens: int

    def __init__(self, width: int, device: torch.device) -> None:
        """Nothing measured yet, for so many inputs."""

    @staticmethod
    def nbytes(width: int) -> int:
        """Memory for so many inputs."""

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
    """A method.

    Attributes:
        prune: weight `(out, in)`, what the statistic prepared, what goes -> the pruned weight, another tensor.
        statistic: what is measured; None: nothing.
    """

    prune: Callable[[Tensor, Any, Removal], Tensor]
    statistic: type[Statistic] | None = None


def _magnitude(weight: Tensor, measured: None, cut: Removal) -> Tensor:
    return weight.masked_fill(cut.mask(magnitude_scores(weight)), 0)


def _wanda(weight: Tensor, norm: Tensor, cut: Removal) -> Tensor:
    return weight.masked_fill(cut.mask(wanda_scores(weight, norm)), 0)


METHODS: dict[Method, PruningMethod] = {
    "magnitude": PruningMethod(_magnitude),
    "wanda": PruningMethod(_wanda, InputNorm),
    "sparsegpt": PruningMethod(sparsegpt, InputProducts),
}
