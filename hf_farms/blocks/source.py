"""The blocks of a model, handed out one after another.

What only reads weights takes a `BlockReader`, what changes a model a `BlockSource`; neither needs the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hf_farms.blocks.discovery import config_above, describe_blocks, find_outside
from hf_farms.blocks.stores import ModuleStore
from hf_farms.blocks.views import BlockMetadata, LayerMetadata, LayerView
from hf_farms.errors import ModelError

__all__ = ["Block", "BlockCalls", "BlockReader", "BlockSource", "ModelBlockSource"]


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
        """Hidden states after this block, given those before it and the captured other arguments."""
        args, kwargs = arguments
        out = self.module(hidden, *args, **kwargs)
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


class BlockSource(BlockReader, Protocol):
    """The blocks of a model, to be run and changed too."""

    dtype: str
    vocabulary: int | None

    def commit(self, index: int) -> None:
        """The block is finished: write it to where the source keeps its results."""

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
        on_commit: receives `(index, name of the block, its state dict)` when a block is finished.

    Raises:
        ModelError: the model has no layers.
    """

    def __init__(
        self, model: nn.Module, *, on_commit: Callable[[int, str, dict[str, Tensor]], None] | None = None
    ) -> None:
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
        self.on_commit = on_commit
        self._returns_tuple: bool | None = None

    def __len__(self) -> int:
        """How many blocks."""
        return len(self.modules)

    def metadata(self, index: int) -> BlockMetadata:
        """Names, roles and shapes of one block."""
        return self._metadata[index]

    def open(self, index: int) -> Block:
        """The block itself; nothing is copied."""
        metadata = self._metadata[index]
        return Block(metadata, self.modules[index], tuple(self._view(layer) for layer in metadata.layers))

    def _view(self, layer: LayerMetadata) -> LayerView:
        path, _, attribute = layer.parameter.rpartition(".")
        module = self.model.get_submodule(path.removesuffix(".base_layer"))
        return LayerView(layer, ModuleStore(module, attribute), module)

    def commit(self, index: int) -> None:
        """Hand the finished block to `on_commit`."""
        if self.on_commit is not None:
            self.on_commit(index, self._metadata[index].name, self.modules[index].state_dict())

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """While open, the model is in evaluation mode."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def count_parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, tied ones once, and how many of them are zero."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(int((p == 0).sum()) for p in parameters)

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
        calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def recorder(forward: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                calls.append((hidden, args[1:], kwargs))
                if self._returns_tuple is None:
                    self._returns_tuple = isinstance(forward(hidden, *args[1:], **kwargs), tuple)
                if len(calls) == len(self):
                    raise _AllCaptured
                return (hidden,) if self._returns_tuple else hidden

            return record

        extra = {"use_cache": False} if hasattr(getattr(self.model, "config", None), "use_cache") else {}
        originals = [module.forward for module in self.modules]
        try:
            for module, forward in zip(self.modules, originals, strict=True):
                module.forward = recorder(forward)
            device = next(self.model.parameters()).device
            with torch.no_grad():
                self.model(**{name: value.to(device) for name, value in batch.items()}, **extra)
        except _AllCaptured:
            pass
        finally:
            for module in self.modules:
                del module.forward  # uncovers the method of the class
        if len(calls) != len(self):
            raise ModelError(f"the model must call each of its {len(self)} blocks once, got {len(calls)} calls.")
        return BlockCalls(calls[0][0], tuple((args, kwargs) for _, args, kwargs in calls))
