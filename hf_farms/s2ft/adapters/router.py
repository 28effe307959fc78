"""Several adapters on one model, chosen for each sample of a batch."""

from __future__ import annotations

import functools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_farms.blocks.wrappers import unwrapped
from hf_farms.config.checks import check
from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.applying import ROUTER, is_merged
from hf_farms.s2ft.adapters.patches import S2FTAdapter
from hf_farms.s2ft.adapters.routed_batches import batch_shape, growth, modules_with_batch
from hf_farms.s2ft.adapters.routed_layers import Id, routed_layers
from hf_farms.s2ft.adapters.routed_products import Groups, Products, group_samples
from hf_farms.s2ft.adapters.targets import check_patchable

__all__ = ["AdapterRouter"]


class AdapterRouter:
    """Serve several adapters at once: each sample of a batch has its own, or none (arXiv 2412.06289, section 5).

    The weights of the model stay those of the base. For each patched layer one batched product adds to the outputs of
    the layer, for all adapters of the batch together: selected inputs are gathered, outputs are added to theirs.
    Samples without an adapter are left out of it, adapters that no sample has cost no time.

    Exactness: the differences `values - base` are computed in float32 and kept in the dtype of the model. In float32 a
    batch equals the merged models, one by one, up to the order of sums (1e-6 relative). In bfloat16 and float16 the
    difference is rounded and not its sum with the base, and the output is rounded once more: outputs agree as well as
    those of two kernels of that dtype.

    Cost: for each token and layer 2·s·m operations for s input channels, 2·s·n for s output channels, with s the
    largest number of channels among the adapters of this layer. Memory: the differences of all adapters, padded to
    that s; inside `using` also those of its adapters, at most twice each, unless one adapter or consecutive ones are
    in use. `using` itself reads the differences once: keep it open over the tokens of a generation. Samples of one
    adapter that stand together, and samples without one at the start or the end, save copies of the activations.

    Only for inference, and only while the layers run their own forward. Gradients flow through, checkpointed
    activations must be recomputed inside `using`. The hooks stay until `remove`, but do nothing outside of `using`.

    Example:
        >>> router = AdapterRouter(model, {"math": math, "law": law})
        >>> with router.using(["math", None, "law"]):
        ...     outputs = model.generate(**batch)  # of three samples
        >>> router.remove()

    Args:
        model: a plain transformers model in memory, with the weights of the base.
        adapters: by id; the ids of a list are 0, 1, ...

    Raises:
        ValueError: no adapters, or things that are none; a compiled model, S2FT or a router on it, an adapter merged.
        ModelError: a model of another base, size or dtype, quantized, sharded or offloaded; shared weights; layers
            outside of the text model (of an encoder of images, say), whose inputs are not one for each sample.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[Id, S2FTAdapter] | Sequence[S2FTAdapter]) -> None:
        named = _checked_adapters(adapters)
        check_patchable(model)
        model = unwrapped(model)
        _check_unmerged(model)
        if ROUTER in vars(model):
            raise ValueError(
                f"model must be without a router, got {type(model).__name__} with one. Call router.remove() first, and "
                f"make one router of all adapters."
            )
        self.model = model
        self._ids: dict[Id, int] = {name: position for position, name in enumerate(named)}
        self._layers = routed_layers(model, named)
        self._products: dict[nn.Module, list[Products]] | None = None
        self._samples, self._thread, self._tokens = 0, 0, 0
        self._factors: tuple[int, ...] = (1,)
        self._handles = [layer.module.register_forward_hook(self._add, with_kwargs=True) for layer in self._layers]
        self._checked = modules_with_batch(model, [layer.path for layer in self._layers])
        for module in self._checked:
            self._handles.append(module.register_forward_pre_hook(self._check_batch, with_kwargs=True))
        model.__dict__[ROUTER] = self

    @property
    def ids(self) -> tuple[Id, ...]:
        """The ids of the adapters."""
        return tuple(self._ids)

    @property
    def is_active(self) -> bool:
        """Whether `using` is open."""
        return self._products is not None

    @contextmanager
    def using(self, ids: Sequence[Id | None]) -> Iterator[None]:
        """Give each sample of the batches inside its adapter.

        Beams and `num_return_sequences` of `model.generate` share the adapter of their sample: pass one id for each
        sample of the batch that `generate` gets.

        Args:
            ids: one for each sample; None is the base model.

        Raises:
            ValueError: ids that are not registered, or a single text; an adapter is merged; `remove` was called.
            ModelError: weights that are no longer those of the base; another thread uses the router.
        """
        rows = self._positions(ids)
        self._check_now()
        before = (self._products, self._samples, self._thread)
        self._products, self._samples, self._thread = self._chosen(rows), len(rows), threading.get_ident()
        attributes: dict[str, Any] = vars(self.model)
        own_generate, generate = attributes.get("generate"), getattr(self.model, "generate", None)
        if callable(generate):
            attributes["generate"] = self._generating(generate)
        try:
            yield
        finally:
            self._products, self._samples, self._thread = before
            attributes.pop("generate", None)
            if own_generate is not None:
                attributes["generate"] = own_generate

    def remove(self) -> None:
        """Take the router off the model, which is as it was before. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        if vars(self.model).get(ROUTER) is self:
            del self.model.__dict__[ROUTER]
        self._handles, self._layers = [], []

    def __enter__(self) -> AdapterRouter:
        """Return the router; `remove` is called at the end."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the router."""
        self.remove()

    def _positions(self, ids: Sequence[Id | None]) -> list[int | None]:
        is_list = isinstance(ids, Sequence) and not isinstance(ids, str) and len(ids) > 0
        check(is_list, "ids", "a list with one id for each sample", ids, "Use None for the base model.")
        for name in ids:
            if name is not None and not (isinstance(name, Id) and name in self._ids):
                known = ", ".join(map(repr, self._ids))
                raise ValueError(f"ids must be None or registered, got {name!r}. Use one of {known}.")
        return [None if name is None else self._ids[name] for name in ids]

    def _chosen(self, rows: list[int | None]) -> dict[nn.Module, list[Products]]:
        """Return the products of each layer that an adapter of this batch changes."""
        chosen: dict[nn.Module, list[Products]] = defaultdict(list)
        groups: dict[tuple[Any, ...], Groups | None] = {}  # those of layers with the same adapters are equal
        for layer in self._layers:
            for stack in layer.stacks:
                key = (stack.adapters, stack.index.device)
                if key not in groups:
                    row = {adapter: i for i, adapter in enumerate(stack.adapters)}
                    own = [None if position is None else row.get(position) for position in rows]
                    groups[key] = group_samples(own, stack.index.device)
                if (grouped := groups[key]) is not None:
                    chosen[layer.module].append(stack.products(grouped))
        return chosen

    def _add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        """Add the products to the output of a layer: a forward hook."""
        products = () if self._products is None else self._products.get(module, ())
        if not products:
            return None
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        # Some models (OPT) join samples and tokens in front of a layer.
        if x.ndim != 2 or len(x) != self._tokens:
            self._check_samples(len(x))
        output = output.contiguous()
        for product in products:
            product.add(x, output)
        return output

    def _check_batch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse batches of another size, changed weights and compilation: a hook before the forward of a model."""
        if self._products is None:
            return
        if torch.compiler.is_compiling():
            _refuse_compiled(module)
        if self._checked[module]:  # once for each token, not in every model around the layers
            _check_unmerged(self.model)
            for layer in self._layers:
                layer.check_unchanged()
        shape = batch_shape(module, args, kwargs)
        self._tokens = 0 if shape is None else math.prod(shape)
        if shape is not None:
            self._check_samples(shape[0])

    def _check_samples(self, batch: int) -> None:
        """Refuse a batch of another size than the list of ids, or that times the growth of `generate`."""
        if batch not in [self._samples * factor for factor in self._factors]:
            raise ValueError(
                f"ids must be one for each sample of the batch, got {self._samples} for a batch of {batch}. "
                f"Pass as many ids to using(...), None for the base model."
            )

    def _generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Return a `generate` that allows the batch to grow by its beams or returned sequences."""

        @functools.wraps(generate)
        def checked(*args: Any, **kwargs: Any) -> Any:
            shape = batch_shape(self.model, args, kwargs)
            if shape is not None:
                self._check_samples(shape[0])
            before, self._factors = self._factors, (1, growth(self.model, args, kwargs))
            try:
                return generate(*args, **kwargs)
            finally:
                self._factors = before

        return checked

    def _check_now(self) -> None:
        """Refuse a model that was changed since the router was made."""
        if not self._handles:
            raise ValueError("using must be called before remove, got a router that was removed. Make a new one.")
        if self._thread not in (0, threading.get_ident()):
            raise ModelError(
                "the router must be used by one thread at a time, got a second one.",
                hint="Put the samples of both into one batch, or give each thread a model of its own.",
            )
        _check_unmerged(self.model)
        for layer in self._layers:
            layer.follow()


def _checked_adapters(adapters: object) -> dict[Id, S2FTAdapter]:
    """Return the adapters by id; refuse an empty collection, and what is no adapter."""
    is_list = isinstance(adapters, Sequence) and not isinstance(adapters, str)
    pairs: Any = adapters if isinstance(adapters, Mapping) else enumerate(cast(Any, adapters)) if is_list else ()
    named: dict[Id, Any] = dict(pairs)
    check(len(named) > 0, "adapters", "a dict or list of at least one S2FTAdapter", adapters)
    for name, adapter in named.items():
        check(isinstance(name, Id), "ids of adapters", "text or integers", name)
        if not isinstance(adapter, S2FTAdapter):
            raise ValueError(
                f"adapters must be of S2FTAdapter, got {type(adapter).__name__} for {name!r}. "
                f"Load it first: S2FTAdapter.from_pretrained(...)."
            )
    return named


def _check_unmerged(model: nn.Module) -> None:
    if is_merged(model):
        raise ValueError(
            f"model must have no adapter merged into it for a router, got a {type(model).__name__} with one. Call "
            f"unmerge(model) of that adapter first, and give it to the router as one of its adapters."
        )


# Dynamo cannot trace the error, so it leaves this function to Python.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _refuse_compiled(model: nn.Module) -> None:
    raise ValueError(
        f"model must not be compiled for a router, got {type(model).__name__} under torch.compile. Use the model "
        f"from before torch.compile, or merge one adapter and compile then."
    )
