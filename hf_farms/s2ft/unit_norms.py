"""Norms of heads and channels: of their weights, activations, or gradients. `STRATEGIES` names the functions.

Memory: one sum of squares per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.blocks import LayerView, ModelBlockSource
from hf_farms.blocks.coupling import Member, Structure
from hf_farms.config import S2FTConfig
from hf_farms.data.batches import check_batch
from hf_farms.errors import DataError, ModelError
from hf_farms.registries import STRATEGIES
from hf_farms.s2ft.coupled import CoupledModel

__all__ = [
    "Batches",
    "activation_norms",
    "gradient_norms",
    "product_norms",
    "random_scores",
    "unit_scores",
    "weight_norms",
]

Batches = Iterable[Mapping[str, Any]]
Structures = Sequence[Sequence[Structure]]


def unit_scores(coupled: CoupledModel, calibration: Batches | None) -> list[list[Tensor]]:
    """Score every unit by the strategy of the config: `(units,)` on the CPU, for each block and structure.

    Raises:
        DataError: no batches, or a model that gives no loss for them.
        ModelError: scores that are not finite, or a layer that the data do not reach.
        ValueError: a strategy that does not return a score for every unit.
    """
    strategy = coupled.config.strategy
    scores: list[list[Tensor]] = STRATEGIES[strategy].load()(coupled, calibration)
    expected = [[(structure.units,) for structure in block] for block in coupled.structures]
    if (shapes := [[tuple(values.shape) for values in block] for block in scores]) != expected:
        raise ValueError(f"strategy {strategy!r} must return scores of shapes {expected}, got {shapes}.")
    for structures, block in zip(coupled.structures, scores, strict=True):
        for structure, values in zip(structures, block, strict=True):
            if not bool(values.isfinite().all()):
                raise ModelError(
                    f"norms of heads and channels must be finite, got NaN or infinity in "
                    f"{structure.members[-1].layer.name}."
                )
    return scores


def random_scores(coupled: CoupledModel, calibration: Batches | None) -> list[list[Tensor]]:
    """Draw a number for every unit; either `keep` selects the same units."""
    config = coupled.config
    generator = torch.Generator().manual_seed(config.seed)
    sign = 1 if config.keep == "largest" else -1
    return _map(coupled.structures, lambda structure: sign * torch.rand(structure.units, generator=generator))


def weight_norms(coupled: CoupledModel, calibration: Batches | None) -> list[list[Tensor]]:
    """Measure the trained weights that belong to each unit."""
    return _roots(_weights(coupled))


def activation_norms(coupled: CoupledModel, calibration: Batches) -> list[list[Tensor]]:
    """Measure the inputs of o or down, over all tokens that an `attention_mask` does not hide."""
    return _roots(_activations(coupled.source, coupled.structures, _views(coupled), calibration))


def product_norms(coupled: CoupledModel, calibration: Batches) -> list[list[Tensor]]:
    """Multiply the norm of each unit's weights by that of its activation."""
    weights = _weights(coupled)
    activations = _activations(coupled.source, coupled.structures, _views(coupled), calibration)
    return _roots([[w * a for w, a in zip(*pair, strict=True)] for pair in zip(weights, activations, strict=True)])


def gradient_norms(coupled: CoupledModel, calibration: Batches) -> list[list[Tensor]]:
    """Measure the gradient of the loss by each unit's trained weights, root of the sum of squares over batches."""
    return _roots(_gradients(coupled.source, coupled.structures, coupled.config, calibration))


def _views(coupled: CoupledModel) -> dict[str, LayerView]:
    source = coupled.source
    return {view.name: view for index in range(len(source)) for view in source.open(index).layers}


def _weights(coupled: CoupledModel) -> list[list[Tensor]]:
    views, config = _views(coupled), coupled.config
    return _map(
        coupled.structures, lambda s: _over_members(s, config, lambda view: view.read().float().square(), views)
    )


def _roots(squares: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[values.sqrt() for values in block] for block in squares]


def _map(structures: Structures, call: Callable[[Structure], Tensor]) -> list[list[Tensor]]:
    return [[call(structure) for structure in block] for block in structures]


def _over_members(
    structure: Structure, config: S2FTConfig, squares: Callable[[LayerView], Tensor], views: Mapping[str, LayerView]
) -> Tensor:
    """Sum over the trained members of what belongs to each unit."""
    return sum(
        (_by_unit(squares(views[m.layer.name]), m) for m in structure.trained(config.roles)),
        start=torch.zeros(structure.units),
    )


def _by_unit(squares: Tensor, member: Member) -> Tensor:
    """Sum squares `(out, in)` for each unit."""
    sums = squares.sum(1 if member.side == "rows" else 0)
    return sums.reshape(-1, member.width).sum(1).float().cpu()


def _activations(
    source: ModelBlockSource,
    structures: Structures,
    views: Mapping[str, LayerView],
    calibration: Batches,
) -> list[list[Tensor]]:
    sums: dict[str, Tensor] = {}
    mask: Any = None

    def add(name: str) -> Callable[[Tensor], None]:
        def call(inputs: Tensor) -> None:
            if mask is not None and inputs.shape[:-1] == mask.shape:
                # Padding does not count.
                inputs = inputs[mask.bool()]
            squares = inputs.detach().float().square().reshape(-1, inputs.shape[-1]).sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return call

    last = [[structure.members[-1] for structure in block] for block in structures]
    with ExitStack() as hooks, source.evaluation(), torch.no_grad():
        for member in (m for block in last for m in block):
            hooks.enter_context(views[member.layer.name].inputs(add(member.layer.name)))
        for batch in _batches(source.model, calibration):
            mask = batch.get("attention_mask")
            source.model(**batch)
    for member in (m for block in last for m in block):
        if member.layer.name not in sums:
            raise ModelError(
                f"every layer must be used on the calibration data, got no input in {member.layer.name}.",
                hint="Choose by strategy='weight' or 'random'.",
            )
    return [[sums[m.layer.name].reshape(-1, m.width).sum(1).cpu() for m in block] for block in last]


def _gradients(
    source: ModelBlockSource,
    structures: Structures,
    config: S2FTConfig,
    calibration: Batches,
) -> list[list[Tensor]]:
    """Sum the squared gradients of each unit; each gradient is freed as soon as it has been added."""
    totals = _map(structures, lambda structure: torch.zeros(structure.units))
    owners: dict[nn.Parameter, list[tuple[Tensor, Member]]] = {}
    for block, sums in zip(structures, totals, strict=True):
        for structure, total in zip(block, sums, strict=True):
            for member in structure.trained(config.roles):
                parameter = source.model.get_parameter(member.layer.parameter)
                owners.setdefault(parameter, []).append((total, member))

    def take(parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        for total, member in owners[parameter]:
            total += _by_unit(member.layer.part.of(parameter.grad).float().square(), member)
        parameter.grad = None

    with _only_these_learn(source.model, owners), ExitStack() as hooks, source.evaluation(), torch.enable_grad():
        for parameter in owners:
            hooks.callback(parameter.register_post_accumulate_grad_hook(take).remove)
        for batch in _batches(source.model, calibration):
            output = source.model(**batch)
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if loss is None:
                raise DataError(
                    f"calibration batches must give a loss for strategy {config.strategy!r}, got none.",
                    hint='Add "labels" to the batches.',
                )
            loss.backward()
    return totals


@contextmanager
def _only_these_learn(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    gradients = {parameter: parameter.grad for parameter in parameters}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in gradients)
        for parameter in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, learns in before.items():
            parameter.requires_grad_(learns)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _batches(model: nn.Module, calibration: Batches) -> Iterator[dict[str, Any]]:
    device, count = next(model.parameters()).device, 0
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    for batch in calibration:
        check_batch(batch, count, vocabulary=vocabulary)
        count += 1
        yield {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    if count == 0:
        raise DataError("calibration must hold at least one batch, got none.")
