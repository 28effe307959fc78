"""Processes that make one result together: they exchange tensors, and raise an error of one on all."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from hf_farms.errors import HfFarmsError
from hf_farms.processes.launched import LaunchedRanks, launched_ranks
from hf_farms.processes.ranks import ONE_PROCESS, WorkingRanks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["leave_ranks", "working_ranks"]

T = TypeVar("T")

# The others wait while one rank hashes weights or searches. A process that ends closes its connections, and is noticed
# at once.
TIMEOUT = timedelta(days=30)
# Kinds of exchange, which all ranks must be in at once.
FAILURE, GATHER, SUM, CONCATENATE = range(4)
# Attribute of errors that are raised on all ranks.
SHARED = "is_on_all_ranks"
# The ranks of this process, if it is one of several and has asked for them.
_connected: list[WorkingRanks] = []


def working_ranks() -> WorkingRanks:
    """Return the ranks that this process belongs to; `ONE_PROCESS` if it was not launched as one of several.

    All of them must call it, and then go through the same exchanges. Calls return the same object until `leave_ranks`:
    an error is announced where the others wait, whoever asked for the ranks.
    """
    ranks = launched_ranks()
    if not isinstance(ranks, LaunchedRanks):
        return ONE_PROCESS
    import torch.distributed as dist

    if not dist.is_initialized():
        # Other code has closed the connections.
        _connected.clear()
    if not _connected:
        _connected.append(_GlooRanks(ranks))
    return _connected[0]


def leave_ranks() -> None:
    """Close the connections to other processes at the end of the work, if there are any.

    A thread of gloo that still holds a tensor while Python shuts down would end the process with an error.
    """
    _connected.clear()
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class _GlooRanks:
    """Launched processes that exchange by gloo, whatever their devices are.

    Each exchange starts with its kind, or with the announcement of an error. So an error of one rank reaches the others
    at their next exchange, whichever that is, and no rank takes part in another exchange than the others.
    """

    def __init__(self, ranks: LaunchedRanks) -> None:
        import torch.distributed as dist

        self.index, self.count = ranks.index, ranks.count
        # "cpu:0" is no device that tensors have.
        self.device: str | None = None if ranks.device.startswith("cpu") else ranks.device
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        # Whether an exchange was begun and not ended: the others wait for its data, and would take an error for that.
        self._is_within = False

    def gather(self, item: T) -> list[T]:
        """Return the items of all ranks, in rank order, on every rank; items are pickled."""
        self._begin(GATHER)
        items = self._gather(item)
        self._is_within = False
        return items

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum over all ranks, in place."""
        import torch.distributed as dist

        self._begin(SUM)
        total = tensor.cpu().contiguous()
        with _lost_ranks():
            dist.all_reduce(total, group=self._group)
        self._is_within = False
        tensor.copy_(total)

    def concatenate(self, part: Tensor) -> Tensor:
        """Return the parts of all ranks along the first dimension, on every rank."""
        import torch
        import torch.distributed as dist

        sizes = self._begin(CONCATENATE, len(part))
        width = part.element_size() * math.prod(part.shape[1:])
        # Bytes, as gloo does not know every dtype; all ranks send as many as the one with the most.
        sent = torch.zeros(max(sizes) * width, dtype=torch.uint8)
        sent[: part.nbytes] = part.detach().cpu().contiguous().flatten().view(torch.uint8)
        received = [torch.empty_like(sent) for _ in sizes]
        with _lost_ranks():
            dist.all_gather(received, sent, group=self._group)
        self._is_within = False
        data = torch.cat([r[: size * width] for r, size in zip(received, sizes, strict=True)])
        return data.view(part.dtype).view(sum(sizes), *part.shape[1:]).to(part.device)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Announce an error that leaves the context to the other ranks, unless it came from there."""
        try:
            yield
        except Exception as error:
            # An error within an exchange cannot be announced, nor an interrupt, which may come within one: this process
            # ends, and the others notice that.
            if not getattr(error, SHARED, False) and not self._is_within:
                setattr(error, SHARED, True)
                self._announce(error)
            raise

    def _begin(self, kind: int, size: int = 0) -> list[int]:
        """Enter an exchange, and return the sizes of all ranks.

        Raises:
            HfFarmsError: another rank failed, or is in another exchange.
        """
        self._is_within = True
        kinds, sizes = self._states(kind, size)
        if FAILURE in kinds:
            errors = self._gather(None)
            self._is_within = False
            raise _shared(_received(errors, self.count))
        if len(set(kinds)) > 1:
            self._is_within = False
            raise _shared(HfFarmsError("processes must take the same steps, got different ones.", hint="Report this."))
        return sizes

    def _announce(self, error: BaseException) -> None:
        try:
            self._states(FAILURE, 0)
            self._gather(error if isinstance(error, HfFarmsError) else repr(error))
        except Exception as lost:  # the other ranks are gone: our own error counts
            error.add_note(f"The other processes were not told: {lost}")

    def _states(self, kind: int, size: int) -> tuple[list[int], list[int]]:
        """Return the kinds and the sizes of all ranks."""
        import torch
        import torch.distributed as dist

        states = [torch.empty(2, dtype=torch.int64) for _ in range(self.count)]
        with _lost_ranks():
            dist.all_gather(states, torch.tensor([kind, size]), group=self._group)
        kinds, sizes = torch.stack(states).T.tolist()
        return kinds, sizes

    def _gather(self, item: T) -> list[T]:
        import torch.distributed as dist

        items: list[T | None] = [None] * self.count
        with _lost_ranks():
            dist.all_gather_object(items, item, group=self._group)
        return items  # type: ignore[return-value]


def _received(errors: Sequence[object], count: int) -> HfFarmsError:
    """Return the first error that was announced."""
    index, error = next((i, e) for i, e in enumerate(errors) if e is not None)
    return error if isinstance(error, HfFarmsError) else HfFarmsError(f"process {index} of {count} failed: {error}")


def _shared(error: HfFarmsError) -> HfFarmsError:
    setattr(error, SHARED, True)
    return error


@contextmanager
def _lost_ranks() -> Iterator[None]:
    """Turn an error of gloo into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise _shared(
            HfFarmsError(
                "processes must run until the result is complete, got one that ended or cannot be reached.",
                hint="See its output, and whether it ran out of memory. Run the same command again to resume.",
            )
        ) from error
