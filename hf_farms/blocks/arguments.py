"""Arguments and outputs of blocks: find the hidden states in them."""

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
# Sequence length of the forward pass that observes how a model calls its blocks.
PROBE_TOKENS = 32

Place = int | str | None
# Position or name of an argument. A `Place` is the position or key in an output; None is the output itself.
Key = int | str


@dataclass(frozen=True)
class OutputForm:
    """Structure of a block's output: hidden states alone, or inside a tuple, list or mapping.

    Attributes:
        place: position or key of the hidden states in the output; None if they are the output.
        output: example output, used for its other entries.
    """

    place: Place
    output: Any = field(repr=False)

    @classmethod
    def of(cls, output: Any, place: Place) -> OutputForm:
        """Build the form of an output. Its tensors are filled with NaN, so that a model cannot use them unnoticed."""
        return cls(place, _without_values(output))

    def hidden(self, output: Any) -> Tensor:
        """Return the hidden states in an output."""
        return cast(Tensor, output if self.place is None else output[self.place])

    def with_hidden(self, hidden: Tensor) -> Any:
        """Return an output that contains the given hidden states."""
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
    """Split the arguments of a block into hidden states and the rest.

    Returns:
        Hidden states, remaining positional arguments, remaining keyword arguments.

    Raises:
        ModelError: the call has no hidden states.
    """
    others = dict(kwargs)
    if args and isinstance(args[0], Tensor):
        return args[0], args[1:], others
    if args or not isinstance(others.get("hidden_states"), Tensor):
        raise ModelError(
            "blocks must take hidden states as first argument, got a call with "
            f"{', '.join(sorted(others)) or 'no arguments'}.",
            hint=WITHOUT_ACTIVATIONS,
        )
    return others.pop("hidden_states"), (), others


def few_tokens(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reduce a batch to one short sequence that is enough to observe how a model calls its blocks.

    With padding, return the whole sequence with the most padding, so that padding logic between blocks is covered.
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
    return {name: t[:, :PROBE_TOKENS] if t.shape == ids.shape else t for name, t in tensors.items()}


def arguments_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """Return tensor, tuple and list arguments by position or name. Mappings are skipped: blocks may fill them."""
    named: dict[Key, Any] = dict(enumerate(args))
    named.update(kwargs.items())
    return {key: value for key, value in named.items() if isinstance(value, Tensor | tuple | list)}


def parts_of(output: Any) -> Iterator[tuple[Place, Tensor]]:
    """Yield the tensors of an output with their places."""
    if isinstance(output, Tensor):
        yield None, output
    elif isinstance(output, Mapping):
        yield from ((place, value) for place, value in output.items() if isinstance(value, Tensor))
    elif isinstance(output, tuple | list):
        yield from ((place, value) for place, value in enumerate(output) if isinstance(value, Tensor))


def hidden_like(output: Any, given: Tensor) -> Iterator[tuple[Place, Tensor]]:
    """Yield the tensors of an output that may be hidden states: float, and shaped like the input."""
    for place, tensor in parts_of(output):
        if tensor.shape == given.shape and tensor.is_floating_point():
            yield place, tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists."""
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
