"""The blocks of a model, handed out one after another.

What only reads weights takes a `BlockReader`, what changes a model a `BlockSource`; neither needs the whole model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_farms.blocks.adapters import BASE
from hf_farms.blocks.chain import (
    WITHOUT_ACTIVATIONS,
    Chain,
    Key,
    OutputForm,
    Place,
    arguments_of,
    few_tokens,
    hidden_argument,
    require_same,
    require_same_arguments,
    require_same_output,
    watch_chain,
)
from hf_farms.blocks.discovery import config_above, describe_blocks, find_outside
from hf_farms.blocks.stores import ModuleStore, count_zeros
from hf_farms.blocks.tensors import StoredTensors, TensorFiles
from hf_farms.blocks.views import BlockMetadata, LayerMetadata, LayerView
from hf_farms.blocks.wrappers import run_eagerly, unwrapped
from hf_farms.errors import ModelError

__all__ = ["Block", "BlockCalls", "BlockReader", "BlockResults", "BlockSource", "ModelBlockSource", "Record"]

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


class _AllCaptured(Exception):  # noqa: N818 - a signal that ends the forward pass, not an error
    pass


class ModelBlockSource:
    """The blocks of a model in memory.

    Args:
        model: any model with layers. Of wrappers around it (PEFT, DDP, torch.compile) it is the model inside that
            counts, and its names; others may be inside it.
        results: where finished blocks go, and come from: what is in it already replaces the block of the model.

    Raises:
        ModelError: the model has no layers.
    """

    # Whether all blocks are there at once.
    in_memory = True

    def __init__(self, model: nn.Module, *, results: BlockResults | None = None) -> None:
        model = unwrapped(model)
        config = getattr(model, "config", None)
        self.model = model
        self.model_type: str = getattr(config, "model_type", "") or type(model).__name__
        self.name: str = getattr(config, "_name_or_path", "") or type(model).__name__
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.vocabulary: int | None = getattr(config, "vocab_size", None)
        self.modules, self._metadata = describe_blocks(model)
        # Parameters of a block that an earlier one has too, and their names there.
        self._shared_with: list[dict[str, tuple[int, str]]] = _shared_parameters(self.modules)
        # Of the language model inside, where there is one.
        self.config: Any = config_above(model, self._metadata[0].name)
        self.outside = tuple(self._view(layer) for layer in find_outside(model))
        self.results: BlockResults | None = None
        self._chain: Chain | ModelError | None = None
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
        while path.endswith(f".{BASE}"):
            path = path.removesuffix(f".{BASE}")
        module = self.model.get_submodule(path)
        return LayerView(layer, ModuleStore(module, attribute), module)

    def attach(self, results: BlockResults) -> None:
        """Send finished blocks there from now on, and take what an earlier run finished from there."""
        self.results = results
        for index in range(len(self)):
            if results.record(index) is not None:
                stored = StoredTensors(results.tensors(index), self.model)
                name = self._metadata[index].name
                with torch.no_grad():
                    for key, tensor in self._own_state(index).items():
                        tensor.copy_(stored.read(f"{name}.{key}"))

    def commit(self, index: int, record: Record) -> None:
        """Hand the finished block to the results."""
        if self.results is not None:
            self.results.write(index, self._metadata[index].name, self._own_state(index), record)

    def _own_state(self, index: int) -> dict[str, Tensor]:
        """Weights of a block without those that an earlier block has too: they are kept there."""
        state = self.modules[index].state_dict()
        return {key: tensor for key, tensor in state.items() if key not in self._shared_with[index]}

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

    def check_chain(self, batch: Mapping[str, Tensor]) -> None:
        """See, once for all batches, that the blocks can be run one after another as the model runs them.

        One forward pass on a few tokens, for which a streamed model reads every block.

        Raises:
            ModelError: they cannot; the block is named.
        """
        self._find_chain(batch)

    def _find_chain(self, batch: Mapping[str, Tensor]) -> Chain:
        if self._chain is None:
            try:
                self._chain = self._watched(few_tokens(batch))
            except ModelError as error:
                self._chain = error
        if isinstance(self._chain, ModelError):
            raise self._chain
        return self._chain

    def _watched(self, batch: dict[str, Tensor]) -> Chain:
        names = [metadata.name for metadata in self._metadata]
        if len(stacks := {name.rpartition(".")[0] for name in names}) > 1:
            raise ModelError(
                f"the blocks must be one stack to be run one after another, got {', '.join(sorted(stacks))}.",
                hint=WITHOUT_ACTIVATIONS,
            )
        shared = [pair for metadata in self._metadata for pair in metadata.shared]
        if shared:
            name, other = shared[0]
            raise ModelError(
                f"layers must belong to one block to be measured, got {name}, which is {other} too.",
                hint=WITHOUT_ACTIVATIONS,
            )
        with self.evaluation(), torch.no_grad():
            with self.whole():
                watched = watch_chain(self.modules, names, lambda: self._call_model(batch))
            chain = watched.chain
            calls = self._capture(batch, chain)
            flat = [call for found in calls.arguments for call in found]
            for call, index, expected, handed in zip(flat, chain.calls, watched.arguments, chain.handed, strict=True):
                found = arguments_of(tuple(call.args), call.kwargs)
                require_same_arguments(found, expected, but=handed, name=names[index])
            if self.in_memory:
                # What runs one after another on the captured arguments is what ran in the model.
                hidden = calls.hidden
                for index, after in enumerate(watched.after):
                    hidden = self.open(index)(hidden, calls.arguments[index])
                    require_same(hidden, after, f"the output of {names[index]}")
            require_same_output(lambda: self._finish(batch, watched.after[-1], chain), watched.output)
        return chain

    def capture(self, batch: Mapping[str, Tensor], *, repeats: bool = False) -> BlockCalls:
        """Run the model with blocks that only write down how they are called.

        Every block's own arguments are taken (masks and position embeddings can differ between blocks), the work of
        the blocks and of the head is skipped.

        Args:
            batch: inputs of the model.
            repeats: whether a block may be called several times in a row (ALBERT): all of its calls count then.

        Raises:
            ModelError: the blocks cannot be run one after another.
        """
        chain = self._find_chain(batch)
        if not repeats and len(chain.calls) > len(self):
            index = next(a for a, b in pairwise(chain.calls) if a == b)
            raise ModelError(
                f"blocks must be called once each, got {chain.calls.count(index)} calls of "
                f"{self._metadata[index].name}."
            )
        return self._capture(batch, chain)

    def _capture(self, batch: Mapping[str, Tensor], chain: Chain) -> BlockCalls:
        arguments: list[list[BlockCall]] = [[] for _ in self.modules]
        flat: list[BlockCall] = []
        first: list[tuple[Tensor, int]] = []

        def record(index: int, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            by_name = not args
            hidden, args, kwargs = hidden_argument(args, kwargs)
            first.append((hidden, 0 if hidden.is_inference() else hidden._version))
            if number >= len(chain.calls) or chain.calls[number] != index or not _same(first[0], first[-1]):
                raise ModelError(
                    "blocks must be called one after another, each on what the one before returned, got something "
                    f"else before {self._metadata[index].name}.",
                    hint=WITHOUT_ACTIVATIONS,
                )
            flat.append(BlockCall(list(args), kwargs, by_name, chain.forms[number]))
            arguments[index].append(flat[-1])
            for key, (giver, place) in chain.handed[number].items():
                flat[giver].handed.append((flat[-1], key, place))
            if number + 1 == len(chain.calls):
                raise _AllCaptured
            return chain.forms[number].with_hidden(hidden)

        self._run_with(record, batch)
        if len(first) != len(chain.calls):
            raise ModelError(f"the model must call its blocks {len(chain.calls)} times, got {len(first)} calls.")
        return BlockCalls(first[0][0], tuple(map(tuple, arguments)))

    def output(self, batch: Mapping[str, Tensor], hidden: Tensor) -> Any:
        """What the model makes of a batch when these are the hidden states after its last block."""
        return self._finish(batch, hidden, self._find_chain(batch))

    def _finish(self, batch: Mapping[str, Tensor], hidden: Tensor, chain: Chain) -> Any:
        def give(index: int, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            last = number + 1 == len(chain.calls)
            return chain.forms[number].with_hidden(hidden if last else hidden_argument(args, kwargs)[0])

        return self._run_with(give, batch)

    def _run_with(
        self, stand_in: Callable[[int, int, tuple[Any, ...], dict[str, Any]], Any], batch: Mapping[str, Tensor]
    ) -> Any:
        """Run the model on a batch with something else in the place of its blocks.

        Args:
            stand_in: gets the index of the block, the number of the call, and its arguments.
            batch: inputs of the model.
        """
        # Hooks of accelerate are such attributes, too.
        own = [module.__dict__.get("forward") for module in self.modules]
        number = iter(range(2**62))

        def replacement(index: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: stand_in(index, next(number), args, kwargs)

        try:
            for index, module in enumerate(self.modules):
                module.forward = replacement(index)
            with torch.no_grad():
                return self._call_model(batch)
        except _AllCaptured:
            return None
        finally:
            for module, forward in zip(self.modules, own, strict=True):
                del module.forward  # uncovers the method of the class
                if forward is not None:
                    module.forward = forward

    def _call_model(self, batch: Mapping[str, Tensor]) -> Any:
        """Run the model, without a cache: with one, blocks would not compute the same when they are called again."""
        parameters = inspect.signature(self.model.forward).parameters
        takes = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        configs = (getattr(self.model, "config", None), self.config)
        extra = {"use_cache": False} if takes and any(hasattr(c, "use_cache") for c in configs) else {}
        with run_eagerly():
            return self.model(**{name: value.to(self.device) for name, value in batch.items()}, **extra)


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    """Whether these are one tensor that was not changed in between, given how often it was changed before each."""
    return one[0] is other[0] and one[1] == other[1]


def _shared_parameters(modules: list[nn.Module]) -> list[dict[str, tuple[int, str]]]:
    """For each block its parameters that an earlier one has too: index and name there by the name here."""
    homes: dict[int, tuple[int, str]] = {}
    shared: list[dict[str, tuple[int, str]]] = []
    for index, module in enumerate(modules):
        named = list(module.named_parameters(remove_duplicate=False))
        shared.append({name: homes[id(p)] for name, p in named if id(p) in homes})
        homes |= {id(p): (index, name) for name, p in named if id(p) not in homes}
    return shared
