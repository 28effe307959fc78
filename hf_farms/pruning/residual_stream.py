"""The residual stream inside a block: hidden states before and after each of its submodules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.blocks.arguments import hidden_argument, hidden_like, parts_of

__all__ = ["ResidualStream"]

# Largest difference between the output of a block and the sum, relative to what the submodules add, per size of the
# dtype in bytes.
TOLERANCE: Mapping[int, float] = {4: 1e-3, 2: 0.1}


class ResidualStream:
    """Sum of the hidden states and of the outputs of submodules, in float32, while a block runs.

    Args:
        block: the block.
        parts: its submodules in order, or the block itself, whose output is the stream after it.
    """

    def __init__(self, block: nn.Module, parts: Sequence[nn.Module]) -> None:
        self._block, self._parts = block, parts
        # Whether the output of the block was that sum in all runs: not so with norms behind the submodules.
        self.is_sum = True

    @contextmanager
    def watching(self, call: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
        """Call `call` with index, stream before and stream after each submodule that runs within the context."""
        self._call = call
        handles = [self._block.register_forward_pre_hook(self._enter, with_kwargs=True)]
        handles += [part.register_forward_hook(partial(self._add, i)) for i, part in enumerate(self._parts)]
        handles.append(self._block.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._start = hidden_argument(args, kwargs)[0].float()
        whole = self._parts[0] is self._block
        self._sum, self._next = torch.zeros_like(self._start) if whole else self._start, 0

    def _add(self, index: int, _part: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        added = next((t for _, t in parts_of(output) if t.numel() == self._sum.numel() and t.is_floating_point()), None)
        if added is None or index != self._next:
            self.is_sum = False
            return
        before, self._next = self._sum, index + 1
        self._sum = before + added.float().reshape(before.shape)
        self._call(index, before, self._sum)

    def _leave(self, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        hidden = next((tensor for _, tensor in hidden_like(output, self._start)), None)
        if hidden is None or self._next != len(self._parts):
            self.is_sum = False
            return
        difference, added = (hidden.float() - self._sum).norm(), (self._sum - self._start).norm()
        self.is_sum &= bool(difference <= TOLERANCE.get(hidden.dtype.itemsize, 0.0) * added)
