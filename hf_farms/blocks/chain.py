"""Whether blocks can be run one after another, each alone, and what each of them returns.

Methods that measure activations run one block at a time on what the block before it returned. That is what the model
computes only where its blocks are a chain: each is called once, or several times in a row, with the very tensor that
the call before returned, and nothing but hidden states goes from one to the next. One forward pass on a few tokens
shows it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_farms.errors import ModelError

__all__ = [
    "WITHOUT_ACTIVATIONS",
    "Chain",
    "Key",
    "OutputForm",
    "Place",
    "Watched",
    "arguments_of",
    "few_tokens",
    "hidden_argument",
    "require_same",
    "require_same_arguments",
    "require_same_output",
    "watch_chain",
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


@dataclass(frozen=True)
class Chain:
    """How a model calls its blocks.

    Attributes:
        calls: index of the block of each call.
        forms: what each call returns.
        handed: for each call the arguments that are what an earlier call returned beside its hidden states: number of
            that call, and place in its output.
    """

    calls: tuple[int, ...]
    forms: tuple[OutputForm, ...]
    handed: tuple[dict[Key, tuple[int, Place]], ...]


@dataclass
class _Call:
    """A call of a block that was watched."""

    index: int
    # Arguments beside the hidden states that are tensors, and those in tuples and lists.
    arguments: dict[Key, Any]
    # What it was given and what it returned, and copies of the values of that time: a model may change them in place.
    given: Tensor
    given_values: Tensor
    output: Any = None
    values: dict[Place, Tensor] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Watched:
    """What was seen of a model that ran.

    Attributes:
        chain: how it calls its blocks.
        after: hidden states after each block.
        arguments: for each call its arguments beside the hidden states.
        output: of the model.
    """

    chain: Chain
    after: list[Tensor]
    arguments: list[dict[Key, Any]]
    output: Any


def watch_chain(modules: Sequence[nn.Module], names: Sequence[str], run: Callable[[], object]) -> Watched:
    """Watch how a model calls its blocks.

    Args:
        modules: the blocks.
        names: of the blocks.
        run: runs the model.

    Raises:
        ModelError: the model does not run, or its blocks are no chain; the block is named.
    """
    for module, name in zip(modules, names, strict=True):
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            raise _no_chain(f"each be called by the model, got no call of {name}")
    calls: list[_Call] = []
    index_of = {module: index for index, module in enumerate(modules)}
    # The call that runs now; None: one that runs again.
    running: list[_Call | None] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if running and running[-1] is None:
            return
        hidden, rest, others = hidden_argument(args, kwargs)
        calls.append(_Call(index_of[module], arguments_of(rest, others), hidden, hidden.clone()))
        running.append(calls[-1])

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if running and running[-1] is None:
            return
        call = running.pop()
        assert call is not None
        call.output, call.values = output, {place: t.clone() for place, t in _hidden_like(output, call.given)}
        running.append(None)
        try:
            again = dict(_hidden_like(module(*args, **kwargs), call.given))
        except Exception as error:
            _raise_out_of_memory(error)
            again = {}
        finally:
            running.pop()
        for place, values in call.values.items():
            require_same(again.get(place), values, f"the output of {names[call.index]} when it is called again")

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(leave, with_kwargs=True) for module in modules]
    try:
        output = run()
    except ModelError:
        raise
    except Exception as error:
        _raise_out_of_memory(error)
        raise ModelError(
            f"the model must run on its inputs, got {type(error).__name__} ({error}).",
            hint=WITHOUT_ACTIVATIONS,
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return _chained(calls, names, output)


def _chained(calls: list[_Call], names: Sequence[str], output: Any) -> Watched:
    order = _order(calls, names)
    places = _places(calls, names)
    returned: dict[int, tuple[int, Place]] = {}
    handed: list[dict[Key, tuple[int, Place]]] = []
    for number, (call, place) in enumerate(zip(calls, places, strict=True)):
        taken = {key: returned[id(value)] for key, value in call.arguments.items() if id(value) in returned}
        inside = [t for value in call.arguments.values() if not isinstance(value, Tensor) for t in _tensors(value)]
        if any(id(tensor) in returned for tensor in inside):
            raise _no_chain(f"hand on tensors as they are, got some in a tuple or list for {names[call.index]}")
        handed.append(taken)
        returned |= {id(t): (number, p) for p, t in _parts(call.output) if p != place}
    forms = tuple(OutputForm.of(call.output, place) for call, place in zip(calls, places, strict=True))
    after = {call.index: call.values[place] for call, place in zip(calls, places, strict=True)}
    return Watched(Chain(order, forms, tuple(handed)), list(after.values()), [call.arguments for call in calls], output)


def _order(calls: list[_Call], names: Sequence[str]) -> tuple[int, ...]:
    """The blocks in the order in which they are called."""
    order = tuple(call.index for call in calls)
    if missing := sorted(set(range(len(names))) - set(order)):
        raise _no_chain(f"each be called by the model, got no call of {names[missing[0]]}")
    late = next((b for a, b in pairwise(order) if b not in (a, a + 1)), None)
    if late is not None or order[0] != 0:
        index = order[0] if late is None else late
        raise _no_chain(
            f"be called one after another, got {order.count(index)} calls of {names[index]} and those of others in "
            "between"
        )
    return order


def _places(calls: list[_Call], names: Sequence[str]) -> list[Place]:
    """Where each call has its hidden states: what the next is given."""
    places: list[Place] = []
    for before, call in pairwise(calls):
        found = [place for place, tensor in _parts(before.output) if tensor is call.given and place in before.values]
        if not found or not _equal(before.values[found[0]], call.given_values):
            raise _no_chain(
                f"hand their hidden states to the next, got other work between {names[before.index]} and "
                f"{names[call.index]}"
            )
        places.append(found[0])
    # The last one has them in the place of the others.
    own = list(calls[-1].values)
    if not own:
        raise _no_chain(f"return hidden states, got {type(calls[-1].output).__name__} from {names[calls[-1].index]}")
    return [*places, places[-1] if places and places[-1] in own else own[0]]


def _no_chain(what: str) -> ModelError:
    return ModelError(f"blocks must {what}.", hint=WITHOUT_ACTIVATIONS)


def require_same(found: Tensor | None, expected: Tensor, what: str) -> None:
    """Refuse activations that are not those of the model, beyond the rounding of their dtype.

    Raises:
        ModelError: with what they are of.
    """
    if found is not None and found.shape == expected.shape:
        if not bool(expected.isfinite().all()):
            return  # which layer that is in is said where it is measured
        tolerance = max(1e-5, 4 * torch.finfo(expected.dtype).eps)
        distance = (found.to(expected.device).double() - expected.double()).norm()
        if float(distance) <= tolerance * float(expected.double().norm()) + 1e-12:
            return
    raise ModelError(
        f"blocks must compute what they compute in the model, got something else as {what}.", hint=WITHOUT_ACTIVATIONS
    )


def _raise_out_of_memory(error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        raise error


def arguments_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """Arguments that are tensors, or tuples and lists, by position or name; mappings are what blocks may fill."""
    named: dict[Key, Any] = dict(enumerate(args))
    named.update(kwargs.items())
    return {key: value for key, value in named.items() if isinstance(value, Tensor | tuple | list)}


def require_same_arguments(found: dict[Key, Any], expected: dict[Key, Any], *, but: Collection[Key], name: str) -> None:
    """Refuse arguments of a block that depend on what the blocks before it compute.

    Args:
        found: while the blocks before it compute nothing.
        expected: while they do.
        but: arguments that are handed on from block to block.
        name: of the block.
    """
    for key, value in expected.items():
        if key not in but:
            one, other = list(_tensors(found.get(key))), list(_tensors(value))
            if len(one) != len(other) or not all(map(_equal, one, other)):
                raise _no_chain(f"depend on hidden states alone, got {key!r} of {name}, which depends on other blocks")


def require_same_output(found: Callable[[], Any], expected: Any) -> None:
    """Refuse a model that needs more of its last block than the hidden states.

    Args:
        found: runs what comes after the blocks on their hidden states alone.
        expected: output of the whole model.
    """

    def first(output: Any) -> Tensor | None:
        return next(_tensors(tuple(output.values()) if isinstance(output, Mapping) else output), None)

    wanted = first(expected)
    if wanted is None or not wanted.is_floating_point():
        return
    try:
        result = first(found())
    except Exception as error:
        _raise_out_of_memory(error)
        result = None
    require_same(result, wanted, "the output of the model, from the hidden states of the last block alone")


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.nan_to_num(), other.to(one.device).nan_to_num())


def _parts(output: Any) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of an output, with their places."""
    if isinstance(output, Tensor):
        yield None, output
    elif isinstance(output, Mapping):
        yield from ((place, value) for place, value in output.items() if isinstance(value, Tensor))
    elif isinstance(output, tuple | list):
        yield from ((place, value) for place, value in enumerate(output) if isinstance(value, Tensor))


def _hidden_like(output: Any, given: Tensor) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of an output that may be hidden states."""
    for place, tensor in _parts(output):
        if tensor.shape == given.shape and tensor.is_floating_point():
            yield place, tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)


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
