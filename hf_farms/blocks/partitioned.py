"""Parameters that ZeRO-3 of DeepSpeed has partitioned: between two uses they are empty, and know their whole shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["gathered", "is_partitioned", "is_sharded", "is_whole", "whole_numel", "whole_shape"]


def is_partitioned(tensor: Tensor) -> bool:
    """Return whether ZeRO-3 keeps a part of this parameter on each process."""
    return hasattr(tensor, "ds_shape")


def is_whole(tensor: Any) -> bool:
    """Return whether a partitioned parameter is whole now, on all processes: small ones always are."""
    return bool(tensor.ds_status.name == "AVAILABLE")


def is_sharded(model: nn.Module) -> bool:
    """Return whether reading a weight is a collective operation: FSDP2, tensor parallelism, ZeRO-3."""
    return any(hasattr(parameter, "full_tensor") or is_partitioned(parameter) for parameter in model.parameters())


def whole_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter, also while it is partitioned."""
    shape: Any = getattr(tensor, "ds_shape", None)
    return tuple(tensor.shape if shape is None else shape)


def whole_numel(tensor: Tensor) -> int:
    """Return the number of elements of a parameter, also while it is partitioned."""
    return int(getattr(tensor, "ds_numel", tensor.numel()))


@contextmanager
def gathered(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Make partitioned parameters whole within the context; all processes enter it together, for the same parameters.

    They are for reading only: a change is lost. Parameters that are whole already stay as they are.
    """
    own = [parameter for parameter in parameters if is_partitioned(parameter) and not is_whole(parameter)]
    if not own:
        yield
        return
    # Only with partitioned parameters DeepSpeed is there.
    import deepspeed

    with deepspeed.zero.GatheredParameters(own):
        yield
