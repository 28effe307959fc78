"""A block, how a model calls it, and what hands out blocks one after another.

What only reads weights takes a `BlockReader`, what changes a model a `BlockSource`; neither needs the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from hf_farms.blocks.arguments import WITHOUT_ACTIVATIONS, Key, OutputForm, Place
from hf_farms.blocks.checkpoint_tensors import TensorFiles
from hf_farms.blocks.layers import BlockMetadata, LayerView
from hf_farms.blocks.wrappers import run_eagerly
from hf_farms.errors import ModelError

__all__ = ["Block", "BlockCall", "BlockCalls", "BlockReader", "BlockResults", "BlockSource", "Record"]

# What is to be known of a finished block beside its weights, in a form that JSON can hold.
Record = Mapping[str, Any]


@dataclass
class BlockCall:
    """One call of a block: its arguments beside the hidden states, and how it returns them.

    Attributes:
        args: by position.
        kwargs: by name.
        by_name: whether the hidden states are an argument by name, too.
        form: of what it returns.
        handed: calls that get something else of what it returns: the call, its argument, and the place here.
    """

    args: list[Any]
    kwargs: dict[str, Any]
    by_name: bool
    form: OutputForm
    handed: list[tuple[BlockCall, Key, Place]] = field(default_factory=list)

    def run(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Hidden states after the call."""
        if self.by_name:
            output = module(*self.args, hidden_states=hidden, **self.kwargs)
        else:
            output = module(hidden, *self.args, **self.kwargs)
        for call, key, place in self.handed:
            value = output if place is None else output[place]
            if isinstance(key, int):
                call.args[key] = value
            else:
                call.kwargs[key] = value
        return self.form.hidden(output)


@dataclass(frozen=True)
class BlockCalls:
    """How the model itself calls its blocks on one batch.

    Attributes:
        hidden: input of the first block.
        arguments: of each block its calls; most have one, a block that is used again and again has several in a row.
    """

    hidden: Tensor
    arguments: tuple[tuple[BlockCall, ...], ...]


@dataclass(frozen=True)
class Block:
    """A loaded block: it can be called, and its layers can be read and written."""

    metadata: BlockMetadata
    module: nn.Module
    layers: tuple[LayerView, ...]

    def __call__(self, hidden: Tensor, calls: tuple[BlockCall, ...]) -> Tensor:
        """Hidden states after this block, given those before it and how the model calls it.

        Raises:
            ModelError: the block refuses its arguments.
        """
        for call in calls:
            try:
                with run_eagerly():
                    hidden = call.run(self.module, hidden)
            except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
                raise ModelError(
                    f"blocks must run one after another on the arguments that the model gives them, got "
                    f"{type(error).__name__} ({error}) in {self.metadata.name}.",
                    hint=WITHOUT_ACTIVATIONS,
                ) from error
        return hidden


class BlockReader(Protocol):
    """The blocks of a model, in order of depth, to be read; may be walked any number of times."""

    name: str
    model_type: str
    # Embeddings and heads: measured when asked for, never changed.
    outside: tuple[LayerView, ...]

    def __len__(self) -> int:
        """How many blocks."""

    def metadata(self, index: int) -> BlockMetadata:
        """Names, roles and shapes, without loading weights."""

    def open(self, index: int) -> Block:
        """The block with its layers."""


class BlockResults(Protocol):
    """Where finished blocks are kept."""

    def write(self, index: int, name: str, state: dict[str, Tensor], record: Record) -> None:
        """Keep the weights of one block, by their names inside it, and what is to be known of it."""

    def record(self, index: int) -> Record | None:
        """What was kept with the block; None: it is not finished."""

    def tensors(self, index: int) -> TensorFiles:
        """The weights of a finished block, by their names on disk."""


class BlockSource(BlockReader, Protocol):
    """The blocks of a model, to be run and changed too."""

    dtype: str
    vocabulary: int | None

    def commit(self, index: int, record: Record) -> None:
        """The block is finished: write it, and what is to be known of it, to where the source keeps its results."""

    def finished(self, index: int) -> Record | None:
        """What `commit` was given for this block, by an earlier run too; `open` then gives its finished weights."""

    def check_chain(self, batch: Mapping[str, Tensor]) -> None:
        """Refuse blocks that cannot be run one after another as the model runs them."""

    def capture(self, batch: Mapping[str, Tensor], *, repeats: bool = False) -> BlockCalls:
        """How the model calls its blocks on this batch."""

    def evaluation(self) -> AbstractContextManager[None]:
        """While open, the blocks run as for inference (no dropout)."""

    def count_parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, tied ones once, and how many of them are zero."""
