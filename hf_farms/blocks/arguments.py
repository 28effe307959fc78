"""What blocks are called with, and what they return."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from hf_farms.errors import ModelError

__all__ = [
    "WITHOUT_ACTIVATIONS",
    "Key",
    "OutputForm",
    "Place",
    "arguments_of",
    "few_tokens",
    "hidden_argument",
    "hidden_like",
    "parts_of",
    "tensors_in",
]

WITHOUT_ACTIVATIONS = "Prune without activations: method 'magnitude'."
# Tokens that show how a model calls its blocks.
FEW = 32

Place = int | str | None
# Position or name of an argument.
Key = int | str


@dataclass(frozen=True)
class OutputForm:
    """How a block returns its hidden states: alone, or with other things in a tuple, a list or a mapping.

    Attributes:
        place: of the hidden states in the output; None: they are the output.
        output: one that the block returned, for the other things in it.
    """

    place: Place
    output: Any = field(repr=False)

    @classmethod
    def of(cls, output: Any, place: Place) -> OutputForm:
        """The form of an output; values that a model must not use stand in for those of its tensors."""
        return cls(place, _without_values(output))

    def hidden(self, output: Any) -> Tensor:
        """The hidden states in an output."""
        return cast(Tensor, output if self.place is None else output[self.place])

    def with_hidden(self, hidden: Tensor) -> Any:
        """An output with these hidden states."""
        if self.place is None:
            return hidden
        if isinstance(self.output, Mapping):
            output: Any = copy.copy(self.output)
            output[self.place] = hidden
            return output
        values = [hidden if place == self.place else value for place, value in enumerate(self.output)]
        if isinstance(self.output, list):
            return values
        return type(self.output)(*values) if hasattr(self.output, "_fields") else tuple(values)


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states that a block is called with, and its other arguments.

    Raises:
        ModelError: there are none.
    """
    others = dict(kwargs)
    if args and isinstance(args[0], Tensor):
        return args[0], args[1:], others
    if args or not isinstance(others.get("hidden_states"), Tensor):
        raise ModelError(
            f"blocks must take hidden states first, got a call with {', '.join(sorted(others)) or 'nothing'}.",
            hint=WITHOUT_ACTIVATIONS,
        )
    return others.pop("hidden_states"), (), others


def few_tokens(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A part of a batch that shows how a model calls its blocks: one sequence, of its tokens the first few.

    Of sequences with padding the one with the most of it, whole: what a model does with padding between its blocks
    shows too.
    """
    tensors = dict(batch)
    first = next(iter(tensors.values()))
    if any(t.ndim == 0 or len(t) != len(first) for t in tensors.values()):
        return tensors
    mask = tensors.get("attention_mask")
    padded = mask is not None and mask.ndim == 2 and not bool(mask.bool().all())
    row = int(mask.bool().sum(dim=1).argmin()) if padded and mask is not None else 0
    tensors = {name: tensor[row : row + 1] for name, tensor in tensors.items()}
    ids = tensors.get("input_ids")
    if ids is None or padded:
        return tensors
    return {name: t[:, :FEW] if t.shape == ids.shape else t for name, t in tensors.items()}


def arguments_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """Arguments that are tensors, or tuples and lists, by position or name; mappings are what blocks may fill."""
    named: dict[Key, Any] = dict(enumerate(args))
    named.update(kwargs.items())
    return {key: value for key, value in named.items() if isinstance(value, Tensor | tuple | list)}


def parts_of(output: Any) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of an output, with their places."""
    if isinstance(output, Tensor):
        yield None, output
    elif isinstance(output, Mapping):
        yield from ((place, value) for place, value in output.items() if isinstance(value, Tensor))
    elif isinstance(output, tuple | list):
        yield from ((place, value) for place, value in enumerate(output) if isinstance(value, Tensor))


def hidden_like(output: Any, given: Tensor) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of an output that may be hidden states."""
    for place, tensor in parts_of(output):
        if tensor.shape == given.shape and tensor.is_floating_point():
            yield place, tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors_in(inner)


def _without_values(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.full_like(value, torch.nan) if value.is_floating_point() else torch.zeros_like(value)
    if isinstance(value, Mapping):
        blank: Any = copy.copy(value)
        for key, inner in value.items():
            blank[key] = _without_values(inner)
        return blank
    if isinstance(value, list):
        return [_without_values(inner) for inner in value]
    if isinstance(value, tuple):
        inside = [_without_values(inner) for inner in value]
        return type(value)(*inside) if hasattr(value, "_fields") else tuple(inside)
    return value
