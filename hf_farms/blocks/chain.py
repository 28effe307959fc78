"""Whether blocks can be run one after another, each alone.

Methods that measure activations run one block at a time on what the block before it returned. That is what the model
computes only where its blocks are a chain: each is called once, or several times in a row, with the very tensor that
the call before returned, and nothing but hidden states goes from one to the next. One forward pass on a few tokens
shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.blocks.arguments import (
    WITHOUT_ACTIVATIONS,
    Key,
    OutputForm,
    Place,
    arguments_of,
    hidden_argument,
    hidden_like,
    parts_of,
    tensors_in,
)
from hf_farms.errors import ModelError

__all__ = [
    "Chain",
    "Watched",
    "require_same",
    "require_same_arguments",
    "require_same_output",
    "watch_chain",
]


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
        call.output, call.values = output, {place: t.clone() for place, t in hidden_like(output, call.given)}
        running.append(None)
        try:
            again = dict(hidden_like(module(*args, **kwargs), call.given))
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
        inside = [t for value in call.arguments.values() if not isinstance(value, Tensor) for t in tensors_in(value)]
        if any(id(tensor) in returned for tensor in inside):
            raise _no_chain(f"hand on tensors as they are, got some in a tuple or list for {names[call.index]}")
        handed.append(taken)
        returned |= {id(t): (number, p) for p, t in parts_of(call.output) if p != place}
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
        found = [place for place, tensor in parts_of(before.output) if tensor is call.given and place in before.values]
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
            one, other = list(tensors_in(found.get(key))), list(tensors_in(value))
            if len(one) != len(other) or not all(map(_equal, one, other)):
                raise _no_chain(f"depend on hidden states alone, got {key!r} of {name}, which depends on other blocks")


def require_same_output(found: Callable[[], Any], expected: Any) -> None:
    """Refuse a model that needs more of its last block than the hidden states.

    Args:
        found: runs what comes after the blocks on their hidden states alone.
        expected: output of the whole model.
    """

    def first(output: Any) -> Tensor | None:
        return next(tensors_in(tuple(output.values()) if isinstance(output, Mapping) else output), None)

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
