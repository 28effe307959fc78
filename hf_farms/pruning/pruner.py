"""Prune a model block by block."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_farms.allocation.plan import plan_sparsity, spread_note
from hf_farms.allocation.sparsity import apportion
from hf_farms.blocks import Block, BlockCalls, BlockSource, LayerMetadata, LayerView, ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.errors import DataError, ModelError, NoEffectWarning
from hf_farms.pruning.magnitude import magnitude_scores
from hf_farms.pruning.patterns import lowest_per_row
from hf_farms.pruning.wanda import InputNorm, wanda_scores
from hf_farms.reports import (
    BlockSparsity,
    CalibrationRecord,
    LayerSparsity,
    PruneReport,
    SpectralReport,
    json_converter,
)
from hf_farms.spectra.analysis import analyze

__all__ = ["PruneResult", "prune"]

L = TypeVar("L", LayerMetadata, LayerView)
Batch = Tensor | Mapping[str, Tensor]
# stage ("analyze", "capture", "prune"), done, total
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PruneResult:
    """The report of a pruned model. The model itself was changed in place."""

    report: PruneReport


def prune(
    model: nn.Module | BlockSource,
    config: PruneConfig | None = None,
    *,
    calibration: Iterable[Batch] | None = None,
    spectra: SpectralReport | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Set the least important weights of every linear layer inside the blocks to zero, in place.

    Embeddings, norms and the head stay as they are. Activations of a block come from the already pruned blocks before
    it: a pass to measure, then a pass to propagate. The total is met to the weight. Time is two forward passes of the
    calibration data through the blocks, memory its hidden states and the scores of the largest layer.

    Args:
        model: a model, or a `BlockSource`, whose `commit` is called for each finished block.
        config: method, sparsity, allocation.
        calibration: token ids `(b, n)` or `(n,)`, or mappings of model inputs, each of any length; needed by Wanda.
            With an `attention_mask`, tokens that are masked out are not counted.
        spectra: of this model, measured as `config.measurement()` says, if there already; else it is measured.
        progress: called with the stage ("analyze", "capture", "prune"), steps done and steps in all.

    Returns:
        The report: targets, measured sparsity, spectra before.

    Raises:
        DataError: Wanda without calibration, or token ids outside the vocabulary.
        ModelError: no blocks, layers that are not linear, NaN in weights or activations (the layer is named).
    """
    config = config or PruneConfig()
    source = ModelBlockSource(model) if isinstance(model, nn.Module) else model
    _check_kinds(source)
    batches = _batches(calibration, source) if config.method == "wanda" else []
    if config.sparsity == 0:
        warnings.warn("sparsity is 0: nothing will be removed.", NoEffectWarning, stacklevel=2)
    tick = progress or (lambda stage, done, total: None)
    if spectra is None and config.allocation != "uniform":
        spectra = analyze(source, config.measurement(), progress=lambda done, total: tick("analyze", done, total))
    targets = [config.sparsity] * len(source) if spectra is None else plan_sparsity(spectra, config=config)
    counts = _layer_counts(source, targets, config.sparsity)
    with source.evaluation(), torch.no_grad():
        blocks = _walk(source, config, batches, targets, counts, tick)
    return PruneResult(_report(source, config, blocks, spectra, batches))


def _check_kinds(source: BlockSource) -> None:
    for index in range(len(source)):
        for layer in source.metadata(index).layers:
            if layer.kind != "linear":
                what = {"expert": "an expert", "conv": "a convolution"}.get(layer.kind, "complex weights")
                raise ModelError(f"layers to prune must be linear, got {what} in {layer.name}.")


def _to_prune(layers: Sequence[L]) -> list[L]:
    """All but routers: a few weights that decide which expert every token goes to."""
    return [layer for layer in layers if layer.role != "router"]


def _batches(calibration: Iterable[Batch] | None, source: BlockSource) -> list[dict[str, Tensor]]:
    if calibration is None:
        raise DataError(
            "calibration must be given for method 'wanda', got None.",
            hint="Pass token ids, or choose method='magnitude'.",
        )
    batches = [{"input_ids": b} if isinstance(b, Tensor) else dict(b) for b in calibration]
    for batch in batches:
        ids = batch.get("input_ids")
        if ids is not None and ids.ndim == 1:
            batch.update({name: value[None] for name, value in batch.items()})
        if ids is not None and ids.numel() and source.vocabulary and int(ids.max()) >= source.vocabulary:
            raise DataError(
                f"calibration token ids must be below {source.vocabulary}, got {int(ids.max())}. "
                "Use the tokenizer of this model."
            )
    if not any(next(iter(batch.values())).numel() for batch in batches):
        raise DataError("calibration must hold at least one token, got none.")
    return batches


def _layer_counts(source: BlockSource, targets: list[float], total: float) -> list[list[int]]:
    """Zeros for every layer of every block: whole numbers that add up to the total exactly."""
    sizes = [
        [layer.shape[0] * layer.shape[1] for layer in _to_prune(source.metadata(i).layers)] for i in range(len(source))
    ]
    block_sizes = [sum(layer_sizes) for layer_sizes in sizes]
    shares = [target * size for target, size in zip(targets, block_sizes, strict=True)]
    block_counts = apportion(round(total * sum(block_sizes)), shares, block_sizes)
    return [
        apportion(count, [count * size / block for size in layer_sizes], layer_sizes)
        for count, block, layer_sizes in zip(block_counts, block_sizes, sizes, strict=True)
    ]


def _walk(
    source: BlockSource,
    config: PruneConfig,
    batches: list[dict[str, Tensor]],
    targets: list[float],
    counts: list[list[int]],
    tick: Progress,
) -> list[BlockSparsity]:
    calls = []
    if all(source.finished(index) is not None for index in range(len(source))):
        batches = []
    for done, batch in enumerate(batches, 1):
        calls.append(source.capture(batch))
        tick("capture", done, len(batches))
    hidden = [call.hidden for call in calls]
    keep = [batch.get("attention_mask") for batch in batches]
    blocks = []
    # Hidden states are needed as far as the last block that no earlier run finished.
    last = max((i for i in range(len(source)) if source.finished(i) is None), default=-1)
    for index in range(len(source)):
        if (record := source.finished(index)) is not None:
            blocks.append(json_converter().structure(record, BlockSparsity))
        else:
            block = source.open(index)
            norms = _input_norms(block, index, hidden, calls, keep) if batches else {}
            blocks.append(_prune_block(block, norms, targets[index], counts[index]))
            source.commit(index, json_converter().unstructure(blocks[-1]))
        if calls and index < last:
            block = source.open(index)
            for i, call in enumerate(calls):
                hidden[i] = block(hidden[i], call.arguments[index])
        tick("prune", index + 1, len(source))
    return blocks


def _prune_block(block: Block, norms: dict[str, Tensor], target: float, counts: list[int]) -> BlockSparsity:
    layers = []
    for layer, count in zip(_to_prune(block.layers), counts, strict=True):
        weight = layer.read()
        scores = wanda_scores(weight, norms[layer.name]) if norms else magnitude_scores(weight)
        pruned = weight.masked_fill(lowest_per_row(scores, count), 0)
        layer.write_(pruned)
        zeros = int((pruned == 0).sum())
        layers.append(LayerSparsity(name=layer.name, num_weights=weight.numel(), num_zeros=zeros))
    return _block_sparsity(block, target, layers)


def _input_norms(
    block: Block, index: int, hidden: list[Tensor], calls: list[BlockCalls], keep: list[Tensor | None]
) -> dict[str, Tensor]:
    """Run the calibration data through one block and measure what its layers are multiplied with."""
    layers = _to_prune(block.layers)
    norms = {layer.name: InputNorm(layer.metadata.shape[1], layer.device) for layer in layers}
    for h, call, mask in zip(hidden, calls, keep, strict=True):

        def count(norm: InputNorm, inputs: Tensor, mask: Tensor | None = mask) -> None:
            by_token = mask is not None and inputs.shape[:-1] == mask.shape
            norm.add(inputs[mask.to(inputs.device).bool()] if by_token and mask is not None else inputs)

        with ExitStack() as stack:
            for layer in layers:
                norm = norms[layer.name]
                stack.enter_context(layer.inputs(lambda inputs, norm=norm, count=count: count(norm, inputs)))  # type: ignore[misc]
            block(h, call.arguments[index])
    for name, norm in norms.items():
        if norm.num_tokens == 0:
            raise ModelError(f"every layer must be used on the calibration data, got no input in {name}.")
        if not torch.isfinite(norm.norm()).all():
            raise ModelError(
                f"calibration activations must be finite, got NaN or infinity at the input of {name}.",
                hint="Load the model in bfloat16 or float32.",
            )
    return {name: norm.norm() for name, norm in norms.items()}


def _block_sparsity(block: Block, target: float, layers: list[LayerSparsity]) -> BlockSparsity:
    sparsity = sum(layer.num_zeros for layer in layers) / sum(layer.num_weights for layer in layers)
    meta = block.metadata
    return BlockSparsity(index=meta.index, name=meta.name, target=target, sparsity=sparsity, layers=tuple(layers))


def _report(
    source: BlockSource,
    config: PruneConfig,
    blocks: list[BlockSparsity],
    spectra: SpectralReport | None,
    batches: list[dict[str, Tensor]],
) -> PruneReport:
    layers = [layer for block in blocks for layer in block.layers]
    parameters, zeros = source.count_parameters()
    calibration = None
    if batches:
        tokens = [batch.get("attention_mask", next(iter(batch.values()))) for batch in batches]
        calibration = CalibrationRecord(
            config=None,
            num_sequences=sum(len(t) for t in tokens),
            num_tokens=sum(
                int(b["attention_mask"].sum()) if "attention_mask" in b else t.numel()
                for b, t in zip(batches, tokens, strict=True)
            ),
        )
    note = spread_note(spectra, config) if spectra is not None else None
    return PruneReport(
        model=source.name,
        model_type=source.model_type,
        config=config,
        dtype=source.dtype,
        blocks=tuple(blocks),
        sparsity=sum(x.num_zeros for x in layers) / sum(x.num_weights for x in layers),
        parameter_sparsity=zeros / parameters,
        num_parameters=parameters,
        before=spectra,
        calibration=calibration,
        notes=(note,) if note else (),
    )
