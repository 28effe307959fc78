"""The blocks of a model, handed out one after another.

What only reads weights takes a `BlockReader`, what changes a model a `BlockSource`; neither needs the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hf_farms.blocks.discovery import config_above, describe_blocks, find_outside
from hf_farms.blocks.stores import ModuleStore, count_zeros
from hf_farms.blocks.tensors import StoredTensors, TensorFiles
from hf_farms.blocks.views import BlockMetadata, LayerMetadata, LayerView
from hf_farms.errors import ModelError

__all__ = ["Block", "BlockCalls", "BlockReader", "BlockResults", "BlockSource", "ModelBlockSource", "Record"]

# What is to be known of a finished block beside its weights, in a form that JSON can hold.
Record = Mapping[str, Any]


@dataclass(frozen=True)
class BlockCalls:
    """How the model itself calls its blocks on one batch: the first block's input, and each block's other arguments."""

    hidden: Tensor
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


@dataclass(frozen=True)
class Block:
    """A loaded block: it can be called, and its layers can be read and written."""

    metadata: BlockMetadata
    module: nn.Module
    layers: tuple[LayerView, ...]

    def __call__(self, hidden: Tensor, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        """Hidden states after this block, given those before it and the captured other arguments.

        Raises:
            ModelError: the block refuses them.
        """
        args, kwargs = arguments
        try:
            out = self.module(hidden, *args, **kwargs)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ModelError(
                f"blocks must run one after another on the arguments that the model gives them, got "
                f"{type(error).__name__} ({error}) in {self.metadata.name}.",
                hint="Prune without activations: method 'magnitude'.",
            ) from error
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)


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

    def capture(self, batch: Mapping[str, Tensor]) -> BlockCalls:
        """How the model calls its blocks on this batch."""

    def evaluation(self) -> AbstractContextManager[None]:
        """While open, the blocks run as for inference (no dropout)."""

    def count_parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, tied ones once, and how many of them are zero."""


class _AllCaptured(Exception):  # noqa: N818 - a signal that ends the forward pass, not an error
    pass


class ModelBlockSource:
    """The blocks of a model in memory.

    Args:
        model: any model with layers. Wrappers (PEFT, DDP, torch.compile) may be around it or inside it.
        results: where finished blocks go, and come from: what is in it already replaces the block of the model.

    Raises:
        ModelError: the model has no layers.
    """

    def __init__(self, model: nn.Module, *, results: BlockResults | None = None) -> None:
        config = getattr(model, "config", None)
        self.model = model
        self.model_type: str = getattr(config, "model_type", "") or type(model).__name__
        self.name: str = getattr(config, "_name_or_path", "") or type(model).__name__
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.vocabulary: int | None = getattr(config, "vocab_size", None)
        self.modules, self._metadata = describe_blocks(model)
        # Of the language model inside, where there is one.
        self.config: Any = config_above(model, self._metadata[0].name)
        self.outside = tuple(self._view(layer) for layer in find_outside(model))
        self.results: BlockResults | None = None
        self._returns_tuple: bool | None = None
        if results is not None:
            self.attach(results)

    def __len__(self) -> int:
        """How many blocks."""
        return len(self.modules)

    def metadata(self, index: int) -> BlockMetadata:
        """Names, roles and shapes of one block."""
        return self._metadata[index]

    @property
    def device(self) -> torch.device:
        """Where the blocks run."""
        return next(self.model.parameters()).device

    def open(self, index: int) -> Block:
        """The block itself; nothing is copied."""
        metadata = self._metadata[index]
        return Block(metadata, self.modules[index], tuple(self._view(layer) for layer in metadata.layers))

    def _view(self, layer: LayerMetadata) -> LayerView:
        path, _, attribute = layer.parameter.rpartition(".")
        module = self.model.get_submodule(path.removesuffix(".base_layer"))
        return LayerView(layer, ModuleStore(module, attribute), module)

    def attach(self, results: BlockResults) -> None:
        """Send finished blocks there from now on, and take what an earlier run finished from there."""
        self.results = results
        for index, module in enumerate(self.modules):
            if results.record(index) is not None:
                stored = StoredTensors(results.tensors(index), self.model)
                name = self._metadata[index].name
                with torch.no_grad():
                    for key, tensor in module.state_dict().items():
                        tensor.copy_(stored.read(f"{name}.{key}"))

    def commit(self, index: int, record: Record) -> None:
        """Hand the finished block to the results."""
        if self.results is not None:
            self.results.write(index, self._metadata[index].name, self.modules[index].state_dict(), record)

    def finished(self, index: int) -> Record | None:
        """What the results know of this block."""
        return self.results.record(index) if self.results is not None else None

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """While open, the model is in evaluation mode; then each module is again in the mode that it was in."""
        learning = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in learning:
                module.training = True

    def whole(self) -> AbstractContextManager[None]:
        """While open, the model can be called as a whole."""
        return nullcontext()

    def count_parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, tied ones once, and how many of them are zero."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(map(count_zeros, parameters))

    def capture(self, batch: Mapping[str, Tensor]) -> BlockCalls:
        """Run the model with blocks that only write down how they are called.

        Every block's own arguments are taken (masks and position embeddings can differ between blocks), the work of
        the blocks and of the head is skipped.
        """
        stacks = {metadata.name.rpartition(".")[0] for metadata in self._metadata}
        if len(stacks) > 1:
            raise ModelError(
                f"the blocks must be one stack to be run one after another, got {', '.join(sorted(stacks))}."
            )
        self.open(0)
        calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def recorder(forward: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                hidden, args, kwargs = _arguments(args, kwargs)
                calls.append((hidden, args, kwargs))
                if self._returns_tuple is None:
                    self._returns_tuple = isinstance(forward(hidden, *args, **kwargs), tuple)
                if len(calls) == len(self):
                    raise _AllCaptured
                return (hidden,) if self._returns_tuple else hidden

            return record

        self._run_with(recorder, batch)
        if len(calls) != len(self):
            raise ModelError(f"the model must call each of its {len(self)} blocks once, got {len(calls)} calls.")
        return BlockCalls(calls[0][0], tuple((args, kwargs) for _, args, kwargs in calls))

    def output(self, batch: Mapping[str, Tensor], hidden: Tensor) -> Any:
        """What the model makes of a batch when these are the hidden states after its last block."""
        if self._returns_tuple is None:
            self.capture(batch)
        last = len(self) - 1
        seen: list[Any] = []

        def passer(forward: Callable[..., Any]) -> Callable[..., Any]:
            def give(*args: Any, **kwargs: Any) -> Any:
                given = hidden if len(seen) == last else _arguments(args, kwargs)[0]
                seen.append(None)
                return (given,) if self._returns_tuple else given

            return give

        return self._run_with(passer, batch)

    def _run_with(
        self, replacement: Callable[[Callable[..., Any]], Callable[..., Any]], batch: Mapping[str, Tensor]
    ) -> Any:
        """Run the model on a batch with something else in the place of its blocks."""
        extra = {"use_cache": False} if hasattr(getattr(self.model, "config", None), "use_cache") else {}
        originals = [module.forward for module in self.modules]
        try:
            for module, forward in zip(self.modules, originals, strict=True):
                module.forward = replacement(forward)
            with torch.no_grad():
                return self.model(**{name: value.to(self.device) for name, value in batch.items()}, **extra)
        except _AllCaptured:
            return None
        finally:
            for module in self.modules:
                del module.forward  # uncovers the method of the class


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states that a block is called with, and its other arguments."""
    others = dict(kwargs)
    if args:
        return args[0], args[1:], others
    if "hidden_states" not in others:
        raise ModelError(
            f"blocks must take hidden states first, got a call with {', '.join(sorted(others)) or 'nothing'}.",
            hint="Prune without activations: method 'magnitude'.",
        )
    return others.pop("hidden_states"), (), others
