"""Record the inputs of layers while a block runs.

Linear layers are recorded with module hooks. Experts are slices of one parameter inside one module, where hooks see
nothing, so the matrix products of that module are intercepted instead.
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
# x W^T, x W, and batched products over all experts.
PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm", "bmm"})


class TokenMask:
    """Select the rows of inputs that belong to unmasked tokens.

    Args:
        mask: `(b, t)`, 0 for masked tokens.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.bool()
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        """Number of unmasked tokens."""
        return int(self._mask.sum())

    def of(self, inputs: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Select the rows of unmasked tokens.

        Repeated calls with the same tensor return the same object, so that layers with a common input can be detected.

        Args:
            inputs: `(b, t, n)`, `(b * t, n)`, or rows of some of the tokens.
            tokens: `(rows,)` indices into `b * t`, if the rows are those of some tokens.

        Returns:
            `(rows, n)`; the inputs unchanged if their rows are not tokens.
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
    """Call `call` with the input of a module each time it runs, within the context."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        call(token_mask.of(args[0]) if token_mask else args[0])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def expert_inputs(
    module: nn.Module, attribute: str, expert: int, call: Call, token_mask: TokenMask | None
) -> Iterator[None]:
    """Call `call` with the inputs `(rows, in)` of one expert each time it runs, within the context.

    Args:
        module: module of the experts.
        attribute: name of its parameter `(e, ...)`.
        expert: index of the expert.
        call: receives the rows.
        token_mask: selects the rows.

    Raises:
        ModelError: the module ran without a product with that parameter.
    """
    recorder = _RECORDERS.get(module)
    if recorder is None:
        recorder = _RECORDERS[module] = _ExpertInputRecorder(module)
    entry = (call, token_mask)
    recorder.calls[attribute, expert].append(entry)
    try:
        yield
    finally:
        recorder.calls[attribute, expert].remove(entry)
        if not any(recorder.calls.values()):
            recorder.close()
            _RECORDERS.pop(module, None)


class _ExpertInputRecorder(TorchFunctionMode):
    """Intercept the matrix products inside one module of experts while it runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: defaultdict[tuple[str, int], list[tuple[Call, TokenMask | None]]] = defaultdict(list)
        self._parameters: dict[str, Tensor] = {}
        self._tokens: Tensor | None = None
        self._seen: set[str] = set()
        self._implementation: str | None = None
        self._handles = (
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._exit, always_call=True),
        )

    def close(self) -> None:
        """Remove the hooks from the module."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # The fused kernels of transformers multiply all experts in one call, without separate rows per expert.
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            self._implementation = config._experts_implementation
            config._experts_implementation = "eager"
        self._seen.clear()
        # Looked up in each call: a block that is read from disk again has new parameters.
        self._parameters = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
        self.__enter__()  # type: ignore[no-untyped-call]

    def _exit(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = self._implementation
        unseen = {attribute for (attribute, _), calls in self.calls.items() if calls} - self._seen
        if unseen and output is not None:
            raise ModelError(
                f"inputs of experts must be visible in a matrix product, got no product with {min(unseen)} of "
                f"{type(module).__name__}.",
                hint="Prune without activations: method 'magnitude'.",
            )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in PRODUCTS and len(args) >= 2:
            self._record_product(args[0], args[1])
        elif name == "__getitem__" and _are_indices(args[1]):
            # hidden_states[token_idx] selects the rows of the next products.
            self._tokens = args[1]
        return func(*args, **(kwargs or {}))

    def _record_product(self, inputs: Tensor, weight: Tensor) -> None:
        for attribute, parameter in self._parameters.items():
            offset = weight.data_ptr() - parameter.data_ptr()
            if not 0 <= offset < parameter.nbytes:
                continue
            self._seen.add(attribute)
            if weight.ndim == 3:
                for expert, rows in enumerate(inputs):
                    # Llama 4 passes every token to every expert; those of other experts are zeroed.
                    used = rows.any(dim=-1).nonzero()[:, 0]
                    self._notify(attribute, expert, rows[used], used)
            else:
                expert = offset // (parameter.stride(0) * parameter.itemsize)
                known = self._tokens is not None and len(self._tokens) == len(inputs)
                self._notify(attribute, expert, inputs, self._tokens if known else None)

    def _notify(self, attribute: str, expert: int, rows: Tensor, tokens: Tensor | None) -> None:
        for call, token_mask in self.calls[attribute, expert]:
            call(token_mask.of(rows, tokens) if token_mask else rows)


def _are_indices(index: object) -> bool:
    return isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.int64


_RECORDERS: WeakKeyDictionary[nn.Module, _ExpertInputRecorder] = WeakKeyDictionary()
