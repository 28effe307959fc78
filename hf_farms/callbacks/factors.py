"""Factors that the user gives: patterns of parameter names, fixed numbers or functions of the progress."""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import TrainerState

from hf_farms.blocks import ModelBlockSource, plain_name, unwrapped
from hf_farms.blocks.partitioned import gathered, is_partitioned
from hf_farms.config import LRQuantity
from hf_farms.config.checks import check, is_real
from hf_farms.errors import HfFarmsWarning

__all__ = ["Factors", "LRProgress", "PatternFactors", "layerwise_decay"]


@dataclass(frozen=True, kw_only=True)
class LRProgress:
    """Progress of a training, for functions that return factors.

    Attributes:
        step: finished steps of the optimizer.
        max_steps: steps of the whole training.
        epoch: passes over the data, also a part of one.
        model: the model, without wrappers; for factors that are measured on it. Under ZeRO-3 its weights are empty
            outside of `gathered`, which a warning says.
    """

    step: int
    max_steps: int
    epoch: float
    model: nn.Module

    @property
    def fraction(self) -> float:
        """Finished share of the training, from 0 to 1."""
        return self.step / self.max_steps if self.max_steps > 0 else 0.0

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """Make the weights of a module whole within the context, for reading.

        Needed under ZeRO-3 of DeepSpeed, where all processes must enter it together; elsewhere it does nothing. Memory
        grows by the weights of the module.

        Args:
            module: a part of the model, such as a layer or a block.
        """
        return gathered(module.parameters())


class _Zero3Progress(LRProgress):
    """Progress with a model that ZeRO-3 has partitioned: reading it outside of `gathered` would measure nothing."""

    @property
    def model(self) -> nn.Module:
        warnings.warn(
            "weights of the model are empty under ZeRO-3 where they are not gathered: read them within "
            "`with progress.gathered(module):`.",
            HfFarmsWarning,
            stacklevel=2,
        )
        return cast(nn.Module, self.__dict__["_model"])

    @model.setter
    def model(self, model: nn.Module) -> None:
        self.__dict__["_model"] = model


def progress_of(state: TrainerState, model: nn.Module) -> LRProgress:
    """Return the progress of a training."""
    inner = unwrapped(model)
    kind = _Zero3Progress if any(map(is_partitioned, inner.parameters())) else LRProgress
    return kind(step=state.global_step, max_steps=state.max_steps, epoch=float(state.epoch or 0.0), model=inner)


Factor = float | Callable[[LRProgress], float]
Factors = Mapping[str, Factor] | Callable[[LRProgress], Mapping[str, float]]

SHAPE = "a mapping of patterns to factors, or a function that returns one"
EXAMPLE = "For example {'embed_tokens': 0.1, r'layers\\.[0-3]\\.': 0.5}."


class PatternFactors:
    """Factors by pattern.

    Args:
        factors: regular expressions with the factors of the parameters whose names contain a match, each a number or a
            function of the progress; or a function of the progress that returns such a mapping of numbers.
        quantity: the quantity that they multiply.

    Raises:
        ValueError: an invalid pattern or factor.
    """

    def __init__(self, factors: Factors, quantity: LRQuantity) -> None:
        check(isinstance(factors, Mapping) or callable(factors), "factors", SHAPE, factors, EXAMPLE)
        self._given, self._quantity = factors, quantity
        if isinstance(factors, Mapping):
            for pattern, factor in factors.items():
                _compiled(pattern)
                if not callable(factor):
                    self._check(pattern, factor)

    @property
    def is_fixed(self) -> bool:
        """Whether all factors are numbers."""
        return isinstance(self._given, Mapping) and not any(callable(factor) for factor in self._given.values())

    def to_json(self) -> dict[str, float] | None:
        """Return the mapping if all factors are numbers, else None: functions cannot be stored."""
        if not self.is_fixed:
            return None
        assert isinstance(self._given, Mapping)
        return {pattern: float(factor) for pattern, factor in self._given.items() if not callable(factor)}

    def at(self, progress: LRProgress) -> dict[str, float]:
        """Return the factor of every pattern.

        Raises:
            ValueError: a function returned an invalid pattern or factor.
        """
        given = self._given if isinstance(self._given, Mapping) else self._given(progress)
        check(isinstance(given, Mapping), "factors", "a function that returns a mapping of patterns", given, EXAMPLE)
        assert isinstance(given, Mapping)
        factors = {pattern: factor(progress) if callable(factor) else factor for pattern, factor in given.items()}
        for pattern, factor in factors.items():
            _compiled(pattern)
            self._check(pattern, factor)
        return {pattern: float(factor) for pattern, factor in factors.items()}

    def _check(self, pattern: str, factor: Any) -> None:
        divides = self._quantity == "constant_decay"
        ok = is_real(factor) and math.isfinite(factor) and (factor > 0 if divides else factor >= 0)
        constraint = "a positive number, as quantity 'constant_decay' divides by it" if divides else "at least 0"
        check(ok, f"factor of {pattern!r}", constraint, factor)


def _compiled(pattern: object) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise ValueError(f"pattern must be a regular expression on parameter names, got {pattern!r}. {EXAMPLE}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"pattern must be a regular expression on parameter names, got {pattern!r} ({error}). "
            "Use re.escape for a name as it is."
        ) from error


def parameters_by_pattern(model: nn.Module, patterns: list[str]) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return for each parameter, frozen ones included, the patterns that match one of its names, in order.

    A parameter has several names if it is tied, or if the model is wrapped (PEFT).
    """
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for module in {id(module): module for module in (model, unwrapped(model))}.values():
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names[parameter].append(plain_name(name))
    expressions = {pattern: _compiled(pattern) for pattern in patterns}
    return {
        parameter: tuple(p for p, expression in expressions.items() if any(map(expression.search, own)))
        for parameter, own in names.items()
    }


def layerwise_decay(model: nn.Module, decay: float = 0.9) -> dict[str, float]:
    """Return factors that fall from the head to the embeddings, block by block (LLRD; ELECTRA, BEiT).

    With n blocks, block i (from 0) gets decay^(n - i), the embeddings decay^(n + 1), the head and the last norm 1.
    Parameters outside of the blocks count as embeddings if they are registered before the blocks, as the tied head is.

    Args:
        model: whose blocks are counted; not modified.
        decay: factor from one block to the one before it; 0.65 to 0.95 is usual, lower for larger pre-trained models.

    Returns:
        Factor by pattern, for `LayerwiseLRCallback`. Put patterns that differ in front:
        `{"classifier": 2.0, **layerwise_decay(model)}`.

    Raises:
        ValueError: a decay that is not above 0.
        ModelError: the model has no blocks.
    """
    check(is_real(decay) and 0 < decay < math.inf, "decay", "a positive number", decay)
    source = ModelBlockSource(model)
    blocks = [f"{source.metadata(index).name}." for index in range(len(source))]
    count, depth = len(blocks), 0
    last = {name for name, _ in source.model.named_parameters() if name.startswith(blocks[-1])}
    factors = {f"^{re.escape(block)}": decay ** (count - index) for index, block in enumerate(blocks)}
    for name, _ in source.model.named_parameters():
        inside = next((index for index, block in enumerate(blocks) if name.startswith(block)), None)
        if inside is None:
            # Between two stacks (encoder, decoder) a parameter follows the block before it.
            factors[f"^{re.escape(name)}$"] = decay ** (count + 1 - depth)
        else:
            last.discard(name)
            depth = inside + 1 if last else count + 1
    return factors
