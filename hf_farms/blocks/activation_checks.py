"""Compare activations of blocks that run alone with those of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_farms.blocks.arguments import WITHOUT_ACTIVATIONS, Key, tensors_in
from hf_farms.errors import ModelError

__all__ = [
    "not_a_chain",
    "require_same",
    "require_same_arguments",
    "require_same_output",
    "reraise_out_of_memory",
    "tensors_equal",
]


def not_a_chain(requirement: str) -> ModelError:
    """Build the error for blocks that cannot be run in sequence: "blocks must {requirement}."."""
    return ModelError(f"blocks must {requirement}.", hint=WITHOUT_ACTIVATIONS)


def require_same(actual: Tensor | None, expected: Tensor, name: str) -> None:
    """Raise unless activations equal those of the model up to the rounding of their dtype.

    Args:
        actual: computed by a block alone; None if it failed to run.
        expected: computed inside the model.
        name: description of the tensor, for the message.

    Raises:
        ModelError: relative L2 distance above 4 machine epsilons (at least 1e-5), or another shape.
    """
    if actual is not None and actual.shape == expected.shape:
        if not bool(expected.isfinite().all()):
            return  # the layer with NaN or infinity is reported when it is measured
        tolerance = max(1e-5, 4 * torch.finfo(expected.dtype).eps)
        distance = (actual.to(expected.device).double() - expected.double()).norm()
        if float(distance) <= tolerance * float(expected.double().norm()) + 1e-12:
            return
    raise ModelError(
        f"blocks must reproduce the activations of the model, got other values for {name}.", hint=WITHOUT_ACTIVATIONS
    )


def reraise_out_of_memory(error: Exception) -> None:
    """Raise the error again if memory ran out: that says nothing about the blocks."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        raise error


def require_same_arguments(
    actual: dict[Key, Any], expected: dict[Key, Any], *, forwarded: Collection[Key], name: str
) -> None:
    """Raise if arguments of a block depend on the output of earlier blocks.

    Args:
        actual: arguments while the earlier blocks are skipped.
        expected: arguments in the normal forward pass.
        forwarded: arguments that are passed from block to block, which may differ.
        name: name of the block.

    Raises:
        ModelError: another argument differs.
    """
    for key, value in expected.items():
        if key not in forwarded:
            actual_tensors, expected_tensors = list(tensors_in(actual.get(key))), list(tensors_in(value))
            if len(actual_tensors) != len(expected_tensors) or not all(
                map(tensors_equal, actual_tensors, expected_tensors)
            ):
                raise not_a_chain(
                    f"depend on hidden states only, got argument {key!r} of {name}, which depends on other blocks"
                )


def require_same_output(run_head: Callable[[], Any], expected: Any) -> None:
    """Raise if the model uses more of its last block's output than the hidden states.

    Args:
        run_head: runs the part of the model after the blocks on the last hidden states.
        expected: output of the whole model.

    Raises:
        ModelError: the output differs.
    """

    def first_tensor(output: Any) -> Tensor | None:
        return next(tensors_in(tuple(output.values()) if isinstance(output, Mapping) else output), None)

    expected_tensor = first_tensor(expected)
    if expected_tensor is None or not expected_tensor.is_floating_point():
        return
    try:
        actual = first_tensor(run_head())
    except Exception as error:
        reraise_out_of_memory(error)
        actual = None
    require_same(actual, expected_tensor, "the output of the model, from the last hidden states alone")


def tensors_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal; NaN equals NaN, and devices may differ."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.nan_to_num(), other.to(one.device).nan_to_num())
