"""The weights that a distillation trains: all that pruning kept, or slices of them that S2FT selects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from hf_farms.blocks import BlockSource, ModelBlockSource
from hf_farms.config import PruneConfig, S2FTConfig
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.pruning.kept_weights import round_kept
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.pruning.submodule_calls import fit_dtype
from hf_farms.s2ft.base_slices import KEPT, StoredSlice, put, take
from hf_farms.s2ft.checks import check_trainable
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.selection import choose_channels
from hf_farms.s2ft.surgery import apply_selection, restore, selective_layers

__all__ = ["KeptWeights", "SelectedChannels", "TrainedWeights", "check_selection", "pruned_weights"]


class TrainedWeights(Protocol):
    """A part of a pruned model that can be trained, and put back."""

    @property
    def num_bytes(self) -> int:
        """Memory of the model, gradients, moments of Adam and the weights before, without activations."""

    def training(self) -> AbstractContextManager[Mapping[str, nn.Parameter]]:
        """Return a context with the float32 parameters, by name, as the only ones of the model that get gradients.

        After an error all weights are as they were; else they are rounded to the dtype of the model, and no kept weight
        to zero.
        """

    def undo(self) -> None:
        """Put the weights from before the training back."""


class KeptWeights:
    """All weights of the pruned layers; the model is in float32 while they are trained.

    Args:
        source: the pruned model.
    """

    def __init__(self, source: ModelBlockSource) -> None:
        self._model, self._weights = source.model, pruned_weights(source)
        self._before: dict[str, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of the training."""
        weights = self._weights.values()
        return 4 * _num_parameters(self._model) + sum(w.numel() * (3 * 4 + w.dtype.itemsize) for w in weights)

    @contextmanager
    def training(self) -> Iterator[Mapping[str, nn.Parameter]]:
        """Train all of the parameters."""
        self._before = {name: weight.data.clone() for name, weight in self._weights.items()}
        trained = {id(weight) for weight in self._weights.values()}
        with _learning(self._model, trained), _in_float32(self._model, leave=trained), _after_error(self.undo):
            yield self._weights
        for name, weight in self._weights.items():
            weight.data = round_kept(weight.data, self._before[name])

    def undo(self) -> None:
        """Put the weights from before the training back."""
        for name, weight in self._weights.items():
            weight.data = self._before[name].clone()


class SelectedChannels:
    """Heads and channels that S2FT selects at random, in the layers that the paper trains (o and down).

    The model stays in bfloat16 where that is faster, and the slices are float32; any other is in float32 meanwhile.

    Args:
        source: the pruned model.
        budget: fraction of the parameters of the model.
    """

    def __init__(self, source: ModelBlockSource, budget: float) -> None:
        self._model = source.model
        self._coupled = CoupledModel(self._model, S2FTConfig(budget=budget))
        self._selection = choose_channels(self._coupled)
        self._before: dict[str, StoredSlice] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of the training."""
        # The slices are inputs: m x s of a weight of m x n.
        sizes = (len(chosen) * self._coupled.layers[name].shape[0] for name, chosen in self._selection.channels.items())
        itemsize = fit_dtype(self._model).itemsize
        return _num_parameters(self._model) * itemsize + sum(sizes) * (4 * 4 + itemsize)

    @contextmanager
    def training(self) -> Iterator[Mapping[str, nn.Parameter]]:
        """Train slices, which replace the weights in the context."""
        # A pruned model is not the base of an earlier training any more.
        self._model.__dict__.pop(KEPT, None)
        is_fast = fit_dtype(self._model) == torch.bfloat16
        with _after_error(self.undo), nullcontext() if is_fast else _in_float32(self._model), self._selective():
            yield {name: layer.selected for name, layer in selective_layers(self._model)}
        for weight, part, before in self._slices():
            put(weight, part.dim, part.indices, round_kept(take(weight, part.dim, part.indices), before))

    def undo(self) -> None:
        """Put the weights from before the training back."""
        for weight, part, before in self._slices():
            put(weight, part.dim, part.indices, before)

    @contextmanager
    def _selective(self) -> Iterator[None]:
        apply_selection(self._coupled, self._selection)
        try:
            yield
        finally:
            restore(self._model)
            self._before = self._model.__dict__.pop(KEPT).slices

    def _slices(self) -> Iterator[tuple[nn.Parameter, StoredSlice, Tensor]]:
        """Yield the weights, their trained channels, and the values from before in the dtype of the weight."""
        for name, part in self._before.items():
            weight = self._model.get_parameter(name)
            yield weight, part, part.values.to(weight.device, weight.dtype)


def pruned_weights(source: ModelBlockSource) -> dict[str, nn.Parameter]:
    """Return the parameters of all pruned layers by name, in the order of the blocks."""
    layers = [layer for index in range(len(source)) for layer in prunable_layers(source.open(index).layers)]
    names = {layer.metadata.parameter: layer.metadata.parameter.rpartition(".")[2] for layer in layers}
    parameters = {layer.metadata.parameter: getattr(layer.module, names[layer.metadata.parameter]) for layer in layers}
    return {name: parameter for name, parameter in parameters.items() if isinstance(parameter, nn.Parameter)}


def check_selection(source: BlockSource, config: PruneConfig) -> None:
    """Refuse a model that has nothing to select, before it is pruned.

    Raises:
        ModelError: S2FT cannot train it.
    """
    if config.recover_budget is None:
        return
    assert isinstance(source, ModelBlockSource), "streamed models were refused"
    check_trainable(source.model)
    with warnings.catch_warnings():
        # Those on a budget that cannot be used come again when the selection is trained.
        warnings.simplefilter("ignore", HfFarmsWarning)
        coupled = CoupledModel(source.model, S2FTConfig(budget=config.recover_budget))
        selection = choose_channels(coupled)
    if not len(selection):
        raise ModelError(
            f"model must have heads or feed-forward channels for recover_budget={config.recover_budget:g}, got "
            f"{type(source.model).__name__} without.",
            hint="Leave `recover_budget` out, which trains all kept weights.",
        )


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _after_error(call: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        call()
        raise


@contextmanager
def _learning(model: nn.Module, trained: Container[int]) -> Iterator[None]:
    """Give gradients to these parameters only, in the context."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in trained)
        yield
    finally:
        for parameter, learned in before:
            parameter.grad = None
            parameter.requires_grad_(learned)


@contextmanager
def _in_float32(model: nn.Module, leave: Container[int] = ()) -> Iterator[None]:
    """Have the model in float32 in the context, float64 excepted; some of the parameters stay so."""
    before = [(parameter, parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()]
    try:
        for parameter, dtype in before:
            # float64 stays: the weights that are not trained must come back with the same bits.
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
        yield
    finally:
        for parameter, dtype in before:
            if id(parameter) not in leave:
                parameter.data = parameter.data.to(dtype)
