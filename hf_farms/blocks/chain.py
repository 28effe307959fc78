"""Check that the blocks of a model form a chain, so that they can be run one at a time.

Methods that measure activations run each block alone on the output of the previous one. This matches the model only if
its blocks form a chain: each block is called once, or several times in a row, with the very tensor that the previous
call returned, and only hidden states pass from block to block. One forward pass on a few tokens verifies this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from hf_farms.blocks.activation_checks import not_a_chain, require_same, reraise_out_of_memory, tensors_equal
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

__all__ = ["Chain", "ObservedRun", "observe_chain"]


@dataclass(frozen=True)
class Chain:
    """Order in which a model calls its blocks, and the data passed between calls.

    Attributes:
        calls: block index of each call.
        forms: output structure of each call.
        forwarded: for each call, the arguments that are extra outputs of an earlier call: number of that call, and
            place in its output.
    """

    calls: tuple[int, ...]
    forms: tuple[OutputForm, ...]
    forwarded: tuple[dict[Key, tuple[int, Place]], ...]


@dataclass
class _ObservedCall:
    """One call of a block during the observed forward pass."""

    index: int
    # Tensor, tuple and list arguments other than the hidden states.
    arguments: dict[Key, Any]
    # Input and output, and copies of their values at that time: a model may change them in place.
    hidden: Tensor
    hidden_values: Tensor
    output: Any = None
    values: dict[Place, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ObservedRun:
    """One observed forward pass of a model.

    Attributes:
        chain: order of the calls, and the data passed between them.
        after: hidden states after each block.
        arguments: arguments of each call other than the hidden states.
        output: output of the model.
    """

    chain: Chain
    after: list[Tensor]
    arguments: list[dict[Key, Any]]
    output: Any


def observe_chain(modules: Sequence[nn.Module], names: Sequence[str], run: Callable[[], object]) -> ObservedRun:
    """Run a model with hooks on its blocks, and derive the chain of calls.

    Every block call is repeated once, so this costs about two forward passes.

    Args:
        modules: the blocks.
        names: their names.
        run: runs the model.

    Raises:
        ModelError: the model does not run, or its blocks do not form a chain; the message names the block.
    """
    for module, name in zip(modules, names, strict=True):
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            raise not_a_chain(f"each be called by the model, got no call of {name}")
    calls: list[_ObservedCall] = []
    index_of = {module: index for index, module in enumerate(modules)}
    # Stack of calls in progress; None marks a repeated call, which is not observed.
    active: list[_ObservedCall | None] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if active and active[-1] is None:
            return
        hidden, rest, others = hidden_argument(args, kwargs)
        calls.append(_ObservedCall(index_of[module], arguments_of(rest, others), hidden, hidden.clone()))
        active.append(calls[-1])

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if active and active[-1] is None:
            return
        call = active.pop()
        assert call is not None
        call.output, call.values = output, {place: t.clone() for place, t in hidden_like(output, call.hidden)}
        active.append(None)
        try:
            repeated = dict(hidden_like(module(*args, **kwargs), call.hidden))
        except Exception as error:
            reraise_out_of_memory(error)
            repeated = {}
        finally:
            active.pop()
        for place, values in call.values.items():
            require_same(repeated.get(place), values, f"the output of {names[call.index]} when it is called again")

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(leave, with_kwargs=True) for module in modules]
    try:
        output = _run_model(run)
    finally:
        for handle in handles:
            handle.remove()
    return _build_chain(calls, names, output)


def _run_model(run: Callable[[], object]) -> object:
    """Run a model; raise ModelError for whatever it raises, except for lack of memory."""
    try:
        return run()
    except ModelError:
        raise
    except Exception as error:
        reraise_out_of_memory(error)
        raise ModelError(
            f"the model must run on its inputs, got {type(error).__name__} ({error}).",
            hint=WITHOUT_ACTIVATIONS,
        ) from error


def _build_chain(calls: list[_ObservedCall], names: Sequence[str], output: Any) -> ObservedRun:
    order = _call_order(calls, names)
    places = _hidden_places(calls, names)
    returned: dict[int, tuple[int, Place]] = {}
    forwarded: list[dict[Key, tuple[int, Place]]] = []
    for number, (call, place) in enumerate(zip(calls, places, strict=True)):
        from_earlier = {key: returned[id(value)] for key, value in call.arguments.items() if id(value) in returned}
        nested = [t for value in call.arguments.values() if not isinstance(value, Tensor) for t in tensors_in(value)]
        if any(id(tensor) in returned for tensor in nested):
            raise not_a_chain(f"pass tensors on directly, got tensors inside a tuple or list for {names[call.index]}")
        forwarded.append(from_earlier)
        returned |= {id(t): (number, p) for p, t in parts_of(call.output) if p != place}
    forms = tuple(OutputForm.of(call.output, place) for call, place in zip(calls, places, strict=True))
    after = {call.index: call.values[place] for call, place in zip(calls, places, strict=True)}
    arguments = [call.arguments for call in calls]
    return ObservedRun(Chain(order, forms, tuple(forwarded)), list(after.values()), arguments, output)


def _call_order(calls: list[_ObservedCall], names: Sequence[str]) -> tuple[int, ...]:
    """Return the block index of each call, and raise unless every block is called, in order."""
    order = tuple(call.index for call in calls)
    if missing := sorted(set(range(len(names))) - set(order)):
        raise not_a_chain(f"each be called by the model, got no call of {names[missing[0]]}")
    misplaced = next((b for a, b in pairwise(order) if b not in (a, a + 1)), None)
    if misplaced is not None or order[0] != 0:
        index = order[0] if misplaced is None else misplaced
        raise not_a_chain(
            f"be called one after another, got {order.count(index)} calls of {names[index]} with calls of other blocks "
            "in between"
        )
    return order


def _hidden_places(calls: list[_ObservedCall], names: Sequence[str]) -> list[Place]:
    """Return the place of the hidden states in each output: the entry that is the input of the next call."""
    places: list[Place] = []
    for before, call in pairwise(calls):
        outputs = parts_of(before.output)
        matches = [place for place, tensor in outputs if tensor is call.hidden and place in before.values]
        if not matches or not tensors_equal(before.values[matches[0]], call.hidden_values):
            raise not_a_chain(
                "pass their hidden states directly to the next block, got other operations between "
                f"{names[before.index]} and {names[call.index]}"
            )
        places.append(matches[0])
    # No call follows the last one: expect the same place as in the others.
    candidates = list(calls[-1].values)
    if not candidates:
        raise not_a_chain(f"return hidden states, got {type(calls[-1].output).__name__} from {names[calls[-1].index]}")
    return [*places, places[-1] if places and places[-1] in candidates else candidates[0]]
