"""What layers are multiplied with while a block runs.

Module hooks show it for linear layers. Experts are slices of one parameter inside one module, so the products of that
module are watched themselves, whatever its forward looks like.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_farms.errors import ModelError

__all__ = ["TokenMask", "expert_inputs", "linear_inputs"]

Call = Callable[[Tensor], None]
# x W^T, x W, and both for all experts at once.
PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm", "bmm"})


class TokenMask:
    """Leaves out the rows of tokens that are masked out.

    Args:
        mask: `(b, t)`, 0 = left out.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.bool()
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        """How many count."""
        return int(self._mask.sum())

    def of(self, inputs: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The rows that count; for the same tensor again the same result, so that who shares it can be told.

        Args:
            inputs: `(b, t, n)`, `(b * t, n)`, or rows of some of the tokens.
            tokens: for rows of some tokens which ones they are, in `b * t`.

        Returns:
            `(rows, n)`; all of the inputs where they are not rows of tokens.
        """
        mask = self._mask.to(inputs.device)
        if tokens is not None:
            return inputs[mask.flatten()[tokens]]
        if inputs.shape[:-1] not in (mask.shape, (mask.numel(),)):
            return inputs
        if self._last is None or self._last[0] is not inputs:
            self._last = (inputs, inputs.flatten(0, -2)[mask.flatten()])
        return self._last[1]


@contextmanager
def linear_inputs(module: nn.Module, call: Call, token_mask: TokenMask | None) -> Iterator[None]:
    """While open, `call` gets the input of the module each time it runs."""

    def hear(_module: nn.Module, args: tuple[Any, ...]) -> None:
        call(token_mask.of(args[0]) if token_mask else args[0])

    handle = module.register_forward_pre_hook(hear)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def expert_inputs(
    module: nn.Module, attribute: str, expert: int, call: Call, token_mask: TokenMask | None
) -> Iterator[None]:
    """While open, `call` gets what one expert's slice of a parameter `(e, ...)` is multiplied with, `(rows, in)`.

    Raises:
        ModelError: the module ran, and nothing was multiplied with that parameter.
    """
    products = _WATCHED.get(module)
    if products is None:
        products = _WATCHED[module] = _ExpertInputRecorder(module)
    entry = (call, token_mask)
    products.calls[attribute, expert].append(entry)
    try:
        yield
    finally:
        products.calls[attribute, expert].remove(entry)
        if not any(products.calls.values()):
            products.close()
            _WATCHED.pop(module, None)


class _ExpertInputRecorder(TorchFunctionMode):
    """Watches the products inside one module of experts, while that module runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: defaultdict[tuple[str, int], list[tuple[Call, TokenMask | None]]] = defaultdict(list)
        self._parameters: dict[str, Tensor] = {}
        self._tokens: Tensor | None = None
        self._seen: set[str] = set()
        self._implementation: str | None = None
        self._handles = (
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, always_call=True),
        )

    def close(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # The fused kernels of transformers multiply all experts in one call that has no rows of one expert.
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            self._implementation = config._experts_implementation
            config._experts_implementation = "eager"
        self._seen.clear()
        # Those of now: a block that is read from disk again has others.
        self._parameters = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
        self.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = self._implementation
        unseen = {attribute for (attribute, _), calls in self.calls.items() if calls} - self._seen
        if unseen and output is not None:
            raise ModelError(
                f"inputs of experts must be seen where they are multiplied, got no product with {min(unseen)} of "
                f"{type(module).__name__}.",
                hint="Prune without activations: method 'magnitude'.",
            )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in PRODUCTS and len(args) >= 2:
            self._product(args[0], args[1])
        elif name == "__getitem__" and _are_indices(args[1]):
            # hidden_states[token_idx]: the rows of the next products.
            self._tokens = args[1]
        return func(*args, **(kwargs or {}))

    def _product(self, inputs: Tensor, weight: Tensor) -> None:
        for attribute, parameter in self._parameters.items():
            offset = weight.data_ptr() - parameter.data_ptr()
            if not 0 <= offset < parameter.nbytes:
                continue
            self._seen.add(attribute)
            if weight.ndim == 3:
                for expert, rows in enumerate(inputs):
                    # Llama 4 hands every token to every expert, those that are not meant for it as zeros.
                    used = rows.any(dim=-1).nonzero()[:, 0]
                    self._tell(attribute, expert, rows[used], used)
            else:
                expert = offset // (parameter.stride(0) * parameter.itemsize)
                known = self._tokens is not None and len(self._tokens) == len(inputs)
                self._tell(attribute, expert, inputs, self._tokens if known else None)

    def _tell(self, attribute: str, expert: int, rows: Tensor, tokens: Tensor | None) -> None:
        for call, token_mask in self.calls[attribute, expert]:
            call(token_mask.of(rows, tokens) if token_mask else rows)


def _are_indices(index: object) -> bool:
    return isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.int64


_WATCHED: WeakKeyDictionary[nn.Module, _ExpertInputRecorder] = WeakKeyDictionary()
