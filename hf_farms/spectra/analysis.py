"""Analyze a model: measure alpha of every layer and block, and build the SpectralReport."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from hf_farms.allocation.block_scores import LayerAlpha, block_scores
from hf_farms.blocks import BlockReader, LayerMetadata, ModelBlockSource
from hf_farms.blocks.model_checks import check_blocks
from hf_farms.blocks.partitioned import is_sharded
from hf_farms.config import FarmsConfig
from hf_farms.config.checks import check_arguments
from hf_farms.config.effects import warn_unused
from hf_farms.errors import ModelError
from hf_farms.processes import ONE_PROCESS, Ranks, all_rank_results, assign_to_ranks
from hf_farms.reports import BlockSpectrum, LayerRecord, SpectralReport
from hf_farms.reports.standing_out import find_standing_out
from hf_farms.spectra.measuring import Task, measure, measure_shards
from hf_farms.spectra.notes import adapter_notes, layer_notes, skipped_notes
from hf_farms.spectra.windows import model_window_rows, plan_weight

__all__ = ["analysis_cost", "analyze", "model_rows"]

# Multiply-adds that take the time of what every layer costs, whatever its size; it matters for small models only.
LAYER_COST = 1e7


def analyze(
    model: nn.Module | BlockReader | str | Path,
    config: FarmsConfig | None = None,
    *,
    outside: bool = False,
    device: str | torch.device | None = None,
    ranks: Ranks = ONE_PROCESS,
    progress: Callable[[int, int], None] | None = None,
) -> SpectralReport:
    """Measure every layer inside the blocks of a model.

    FARMS, arXiv 2506.06280, section 3. Norms and biases have no spectrum; layers that are smaller than the windows of
    the model, such as routers, are skipped with a warning. Layers are read a few at a time, so memory grows with the
    largest layer. Time grows with the number of windows times the cube of the window rows; with the default windows it
    is 1/8 of an exact decomposition of the weights.

    Args:
        model: a model; or a hub id, a folder or `demo`, whose weights are read one by one from the files; or a
            `BlockReader`. Not modified.
        config: windows and fit. With `window_rows="auto"`, one window size is chosen for the whole model.
        outside: also measure embeddings and head; they belong to no block.
        device: device to measure on; None for the device of the weights.
        ranks: with several processes, each measures its share of the layers; all return the same report. Sharded
            weights (FSDP2, ZeRO-3) are gathered one layer at a time, which all processes do together.
        progress: called with the number of finished layers and of all layers (of this process).

    Returns:
        Alpha and its standard error for every layer and block; `standing_out` has the blocks that look less trained
        than the others; `notes` lists skipped layers and other caveats.

    Raises:
        ModelError: no measurable layers, NaN in a weight (the message names the layer), or a missing or incomplete
            checkpoint.
    """
    check_arguments(analyze, config=config, outside=outside)
    config = config or FarmsConfig()
    warn_unused(config)
    device = _device(device)
    source = _reader(model, outside=outside)
    rows = model_rows(source, config)
    tasks, skipped = _tasks(source, config, rows, outside=outside)
    notes = skipped_notes(skipped, len(tasks), rows)
    if ranks.count > 1 and isinstance(source, ModelBlockSource) and is_sharded(source.model):
        parts = all_rank_results(lambda: measure_shards(source, tasks, config, device, progress, ranks), ranks)
    else:
        own = assign_to_ranks([task.cost for task in tasks], ranks.count)[ranks.index]
        parts = all_rank_results(lambda: measure(source, [tasks[i] for i in own], config, device, progress), ranks)
    measured = {key: record for part, _ in parts for key, record in part.items()}
    notes += adapter_notes([reason for _, reasons in parts for reason in reasons])
    records: dict[int, list[LayerRecord]] = {}
    for task in tasks:
        records.setdefault(task.block, []).append(measured[task.block, task.position])
    lowered = [task.layer.name for task in tasks if task.plan.lowered]
    metadata = [source.metadata(index) for index in range(len(source))]
    unscored = [
        BlockSpectrum(index=m.index, name=m.name, alpha=None, alpha_stderr=None, layers=tuple(records.get(i, ())))
        for i, m in enumerate(metadata)
    ]
    blocks = _with_scores(unscored, config)
    return SpectralReport(
        model=source.name,
        model_type=source.model_type,
        config=config,
        window_rows=rows,
        blocks=blocks,
        outside=tuple(records.get(len(source), ())),
        notes=(*notes, *layer_notes([measured[task.block, task.position] for task in tasks], lowered, rows, config)),
        standing_out=find_standing_out(blocks, config),
    )


def analysis_cost(source: BlockReader, config: FarmsConfig, *, outside: bool = False) -> float:
    """Return the approximate multiply-adds of `analyze`, from shapes only; the same on every machine.

    Raises:
        ModelError: a layer that no window fits into.
    """
    tasks, _ = _tasks(source, config, model_rows(source, config), outside=outside)
    return math.fsum(task.cost + LAYER_COST for task in tasks)


def _device(device: str | torch.device | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be None or a device such as 'cpu' or 'cuda:0', got {device!r}.") from error


def _reader(model: nn.Module | BlockReader | str | Path, *, outside: bool) -> BlockReader:
    if isinstance(model, nn.Module):
        return ModelBlockSource(model)
    if isinstance(model, str | Path):
        # Imported here, because a model in memory needs none of it.
        from hf_farms.loading.opening import open_model

        return open_model(model, head=outside)
    check_blocks(model, also=", a hub id, a folder, 'demo'")
    return model


def _layers(source: BlockReader, *, outside: bool) -> Iterator[tuple[int, int, LayerMetadata]]:
    for index in range(len(source)):
        for position, layer in enumerate(source.metadata(index).layers):
            yield index, position, layer
    for position, view in enumerate(source.outside if outside else ()):
        yield len(source), position, view.metadata


def model_rows(source: BlockReader, config: FarmsConfig) -> int | None:
    """Return the window rows for a model; None for whole matrices, or if there are only convolutions."""
    if config.window_rows != "auto":
        return config.window_rows
    shapes = [layer.shape for _, _, layer in _layers(source, outside=False) if len(layer.shape) == 2]
    return model_window_rows([(m, n) for m, n in shapes], config.aspect_ratio) if shapes else None


def _tasks(
    source: BlockReader, config: FarmsConfig, rows: int | None, *, outside: bool
) -> tuple[list[Task], list[LayerMetadata]]:
    """Plan the measurement: layers to measure, and layers that are too small for the automatic window size."""
    tasks, skipped = [], []
    for index, position, layer in _layers(source, outside=outside):
        try:
            # With "auto", the pieces of a convolution follow its own shape.
            plan = plan_weight(layer.shape, replace(config, window_rows=rows) if len(layer.shape) == 2 else config)
        except ValueError as error:
            raise ModelError(f"{layer.name}: {error}") from error
        if config.window_rows == "auto" and plan.lowered:
            skipped.append(layer)
        else:
            tasks.append(Task(index, position, layer, plan))
    return tasks, skipped


def _with_scores(blocks: list[BlockSpectrum], config: FarmsConfig) -> tuple[BlockSpectrum, ...]:
    fitted = [
        [LayerAlpha(r.role, r.alpha, r.alpha_stderr) for r in block.layers if r.alpha is not None and r.counts]
        for block in blocks
    ]
    scores = block_scores(fitted, config.block_score)
    return tuple(
        replace(block, alpha=score[0], alpha_stderr=score[1]) if score else block
        for block, score in zip(blocks, scores, strict=True)
    )
