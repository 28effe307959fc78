"""RunnableBlocks: run the blocks of a model one after another, as the model itself runs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.blocks.activation_checks import require_same, require_same_arguments, require_same_output
from hf_farms.blocks.arguments import WITHOUT_ACTIVATIONS, arguments_of, few_tokens, hidden_argument
from hf_farms.blocks.chain import Chain, observe_chain
from hf_farms.blocks.discovery import config_above, describe_blocks
from hf_farms.blocks.layers import BlockMetadata
from hf_farms.blocks.protocols import Block, BlockCall, BlockCalls
from hf_farms.blocks.wrappers import run_eagerly
from hf_farms.errors import ModelError

__all__ = ["RunnableBlocks"]


class _AllCaptured(Exception):  # noqa: N818 - a signal that ends the forward pass, not an error
    pass


class RunnableBlocks:
    """Blocks of a model that can be called one at a time.

    Args:
        model: the model, without wrappers.

    Raises:
        ModelError: the model has no layers.
    """

    # Whether all blocks are in memory at once.
    in_memory = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules, self._metadata = describe_blocks(model)
        # In a multimodal model, the config of its language model.
        self.config: Any = config_above(model, self._metadata[0].name)
        self._chain: Chain | ModelError | None = None

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.modules)

    def metadata(self, index: int) -> BlockMetadata:
        """Return names, roles and shapes of one block."""
        return self._metadata[index]

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return next(self.model.parameters()).device

    def open(self, index: int) -> Block:
        """Return a block with its layers."""
        raise NotImplementedError

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Put the model into evaluation mode within the context, then restore the mode of every module."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def whole(self) -> AbstractContextManager[None]:
        """Make the whole model callable within the context."""
        return nullcontext()

    def check_chain(self, batch: Mapping[str, Tensor]) -> None:
        """Raise if the blocks cannot be run one after another as the model runs them.

        The first call runs a few forward passes on a few tokens (a streamed model reads every block once); the result
        is kept for later calls.

        Raises:
            ModelError: the blocks do not form a chain; the message names the block.
        """
        self._find_chain(batch)

    def _find_chain(self, batch: Mapping[str, Tensor]) -> Chain:
        if self._chain is None:
            try:
                self._chain = self._verified_chain(few_tokens(batch))
            except ModelError as error:
                self._chain = error
        if isinstance(self._chain, ModelError):
            raise self._chain
        return self._chain

    def _verified_chain(self, batch: dict[str, Tensor]) -> Chain:
        names = [metadata.name for metadata in self._metadata]
        if len(stacks := {name.rpartition(".")[0] for name in names}) > 1:
            raise ModelError(
                f"blocks must form a single stack to be run one after another, got {', '.join(sorted(stacks))}.",
                hint=WITHOUT_ACTIVATIONS,
            )
        shared = [pair for metadata in self._metadata for pair in metadata.shared]
        if shared:
            name, other = shared[0]
            raise ModelError(
                f"layers must belong to one block to be measured, got {name}, which shares its weight with {other}.",
                hint=WITHOUT_ACTIVATIONS,
            )
        with self.evaluation(), torch.no_grad():
            with self.whole():
                observed = observe_chain(self.modules, names, lambda: self._call_model(batch))
            chain = observed.chain
            calls = self._capture(batch, chain)
            flat = [call for block_calls in calls.arguments for call in block_calls]
            for call, index, expected, forwarded in zip(
                flat, chain.calls, observed.arguments, chain.forwarded, strict=True
            ):
                actual = arguments_of(tuple(call.args), call.kwargs)
                require_same_arguments(actual, expected, forwarded=forwarded, name=names[index])
            if self.in_memory:
                # Running the blocks on the captured arguments must reproduce the activations of the model.
                hidden = calls.hidden
                for index, after in enumerate(observed.after):
                    hidden = self.open(index)(hidden, calls.arguments[index])
                    require_same(hidden, after, f"the output of {names[index]}")
            require_same_output(lambda: self._finish(batch, observed.after[-1], chain), observed.output)
        return chain

    def capture(self, batch: Mapping[str, Tensor], *, repeats: bool = False) -> BlockCalls:
        """Record the arguments of all block calls on a batch.

        The model runs with its blocks replaced by recorders, so the work of the blocks and of the head is skipped.
        Arguments are recorded per block, because masks and position embeddings can differ between blocks.

        Args:
            batch: inputs of the model.
            repeats: allow several calls of a block in a row (ALBERT), and record all of them.

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
            if number >= len(chain.calls) or chain.calls[number] != index or not _is_unchanged(first[0], first[-1]):
                raise ModelError(
                    "blocks must be called one after another, each on the output of the previous one, got other "
                    f"operations before {self._metadata[index].name}.",
                    hint=WITHOUT_ACTIVATIONS,
                )
            flat.append(BlockCall(list(args), kwargs, by_name, chain.forms[number]))
            arguments[index].append(flat[-1])
            for key, (producer, place) in chain.forwarded[number].items():
                flat[producer].forwarded.append((flat[-1], key, place))
            if number + 1 == len(chain.calls):
                raise _AllCaptured
            return chain.forms[number].with_hidden(hidden)

        self._run_with(record, batch)
        if len(first) != len(chain.calls):
            raise ModelError(f"the model must call its blocks {len(chain.calls)} times, got {len(first)} calls.")
        return BlockCalls(first[0][0], tuple(map(tuple, arguments)))

    def output(self, batch: Mapping[str, Tensor], hidden: Tensor, *, gradients: bool = False) -> Any:
        """Compute the output of the model on a batch, given the hidden states after its last block.

        Args:
            batch: inputs of the model.
            hidden: the hidden states.
            gradients: record the operations for a backward pass.
        """
        return self._finish(batch, hidden, self._find_chain(batch), gradients=gradients)

    def _finish(self, batch: Mapping[str, Tensor], hidden: Tensor, chain: Chain, *, gradients: bool = False) -> Any:
        def pass_through(index: int, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            last = number + 1 == len(chain.calls)
            return chain.forms[number].with_hidden(hidden if last else hidden_argument(args, kwargs)[0])

        return self._run_with(pass_through, batch, gradients=gradients)

    def _run_with(
        self,
        stand_in: Callable[[int, int, tuple[Any, ...], dict[str, Any]], Any],
        batch: Mapping[str, Tensor],
        *,
        gradients: bool = False,
    ) -> Any:
        """Run the model on a batch with its blocks replaced.

        Args:
            stand_in: called instead of each block with block index, number of the call, args and kwargs.
            batch: inputs of the model.
            gradients: record the operations for a backward pass.
        """
        # Hooks of accelerate also replace `forward` on the instance: restore them afterwards.
        instance_forwards = [module.__dict__.get("forward") for module in self.modules]
        number = iter(range(2**62))

        def replacement(index: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: stand_in(index, next(number), args, kwargs)

        try:
            for index, module in enumerate(self.modules):
                module.forward = replacement(index)
            with torch.set_grad_enabled(gradients):
                return self._call_model(batch)
        except _AllCaptured:
            return None
        finally:
            for module, forward in zip(self.modules, instance_forwards, strict=True):
                del module.forward  # the method of the class is visible again
                if forward is not None:
                    module.forward = forward

    def _call_model(self, batch: Mapping[str, Tensor]) -> Any:
        """Run the model without a cache: a cache would change the result of repeated block calls."""
        parameters = inspect.signature(self.model.forward).parameters
        takes_cache = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        configs = (getattr(self.model, "config", None), self.config)
        extra = {"use_cache": False} if takes_cache and any(hasattr(c, "use_cache") for c in configs) else {}
        with run_eagerly():
            return self.model(**{name: value.to(self.device) for name, value in batch.items()}, **extra)


def _is_unchanged(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    """Return whether two (tensor, version) pairs are the same tensor without in-place changes in between."""
    return one[0] is other[0] and one[1] == other[1]
