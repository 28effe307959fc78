"""The blocks of a model, run one after another as the model itself runs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.blocks.arguments import WITHOUT_ACTIVATIONS, arguments_of, few_tokens, hidden_argument
from hf_farms.blocks.chain import Chain, require_same, require_same_arguments, require_same_output, watch_chain
from hf_farms.blocks.discovery import config_above, describe_blocks
from hf_farms.blocks.layers import BlockMetadata
from hf_farms.blocks.protocols import Block, BlockCall, BlockCalls
from hf_farms.blocks.wrappers import run_eagerly
from hf_farms.errors import ModelError

__all__ = ["RunnableBlocks"]


class _AllCaptured(Exception):  # noqa: N818 - a signal that ends the forward pass, not an error
    pass


class RunnableBlocks:
    """The blocks of a model that can be called.

    Args:
        model: without wrappers around it.

    Raises:
        ModelError: the model has no layers.
    """

    # Whether all blocks are there at once.
    in_memory = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules, self._metadata = describe_blocks(model)
        # Of the language model inside, where there is one.
        self.config: Any = config_above(model, self._metadata[0].name)
        self._chain: Chain | ModelError | None = None

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
        """The block with its layers."""
        raise NotImplementedError

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
