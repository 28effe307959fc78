"""Block, BlockCall, and the interfaces BlockReader, BlockSource and BlockResults.

Code that only reads weights takes a `BlockReader`; code that modifies a model takes a `BlockSource`. Neither needs the
whole model in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from hf_farms.blocks.arguments import WITHOUT_ACTIVATIONS, Key, OutputForm, Place
from hf_farms.blocks.layers import BlockMetadata, LayerView
from hf_farms.blocks.tensor_files import TensorFiles
from hf_farms.blocks.wrappers import run_eagerly
from hf_farms.errors import ModelError

__all__ = ["Block", "BlockCall", "BlockCalls", "BlockReader", "BlockResults", "BlockSource", "Record"]

# JSON-compatible record that is stored with the weights of a finished block.
Record = Mapping[str, Any]


@dataclass
class BlockCall:
    """Arguments of one call of a block, and the structure of its output.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keyword arguments other than the hidden states.
        by_name: whether the hidden states are passed by keyword.
        form: structure of the output.
        forwarded: later calls that receive another entry of the output: the call, its argument, and the place of the
            entry.
    """

    args: list[Any]
    kwargs: dict[str, Any]
    by_name: bool
    form: OutputForm
    forwarded: list[tuple[BlockCall, Key, Place]] = field(default_factory=list)

    def run(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Run the block and return the hidden states after it."""
        if self.by_name:
            output = module(*self.args, hidden_states=hidden, **self.kwargs)
        else:
            output = module(hidden, *self.args, **self.kwargs)
        for call, key, place in self.forwarded:
            value = output if place is None else output[place]
            if isinstance(key, int):
                call.args[key] = value
            else:
                call.kwargs[key] = value
        return self.form.hidden(output)


@dataclass(frozen=True)
class BlockCalls:
    """Calls of all blocks on one batch, as the model makes them.

    Attributes:
        hidden: input of the first block.
        arguments: calls of each block: usually one; several in a row for a block that is applied repeatedly (ALBERT).
    """

    hidden: Tensor
    arguments: tuple[tuple[BlockCall, ...], ...]


@dataclass(frozen=True)
class Block:
    """Loaded block: callable, with readable and writable layers."""

    metadata: BlockMetadata
    module: nn.Module
    layers: tuple[LayerView, ...]

    def __call__(self, hidden: Tensor, calls: tuple[BlockCall, ...]) -> Tensor:
        """Run the block and return the hidden states after it.

        Args:
            hidden: hidden states before the block.
            calls: its calls in the model.

        Raises:
            ModelError: the block cannot run on its arguments.
        """
        for call in calls:
            try:
                with run_eagerly():
                    hidden = call.run(self.module, hidden)
            except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
                raise ModelError(
                    f"blocks must run one after another on the arguments that the model passes to them, got "
                    f"{type(error).__name__} ({error}) in {self.metadata.name}.",
                    hint=WITHOUT_ACTIVATIONS,
                ) from error
        return hidden


class BlockReader(Protocol):
    """Blocks of a model in order of depth, read only; can be iterated any number of times."""

    name: str
    model_type: str
    # Embeddings and heads: measured on request, never modified.
    outside: tuple[LayerView, ...]

    def __len__(self) -> int:
        """Return the number of blocks."""

    def metadata(self, index: int) -> BlockMetadata:
        """Return names, roles and shapes of one block, without loading weights."""

    def open(self, index: int) -> Block:
        """Return a block with its layers."""


class BlockResults(Protocol):
    """Store of finished blocks."""

    def write(self, index: int, name: str, state: dict[str, Tensor], record: Record) -> None:
        """Store the weights of one block, by name inside the block, and its record."""

    def record(self, index: int) -> Record | None:
        """Return the record of a finished block; None if it is not finished."""

    def tensors(self, index: int) -> TensorFiles:
        """Return the weights of a finished block, by name on disk."""


class BlockSource(BlockReader, Protocol):
    """Blocks of a model that can be run and modified."""

    dtype: str
    vocabulary: int | None

    def commit(self, index: int, record: Record) -> None:
        """Mark a block as finished: store its weights and record in the results of the source."""

    def finished(self, index: int) -> Record | None:
        """Return the record of a block finished in this or an earlier run, or None; `open` returns finished weights."""

    def open_dense(self, index: int) -> Block:
        """Return a block with its weights before this or an earlier run finished it, until another one is opened."""

    def check_chain(self, batch: Mapping[str, Tensor]) -> None:
        """Raise ModelError if the blocks cannot be run one after another."""

    def capture(self, batch: Mapping[str, Tensor], *, repeats: bool = False) -> BlockCalls:
        """Return the calls of all blocks on a batch."""

    def evaluation(self) -> AbstractContextManager[None]:
        """Run the blocks in evaluation mode (no dropout) within the context."""

    def count_parameters(self) -> tuple[int, int]:
        """Count all parameters and those that are zero; tied parameters count once."""
