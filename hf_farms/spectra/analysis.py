"""Model -> SpectralReport."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from hf_farms.allocation.block_scores import LayerAlpha, block_scores
from hf_farms.blocks import BlockReader, LayerMetadata, LayerView, ModelBlockSource
from hf_farms.config import FarmsConfig
from hf_farms.distributed import ONE_PROCESS, Ranks, collected, share_out
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.reports import BlockSpectrum, LayerRecord, SpectralReport
from hf_farms.spectra.spectrum import LayerSpectrum, layer_spectra
from hf_farms.spectra.windows import WindowPlan, model_window_rows, plan_weight

__all__ = ["analyze", "model_rows"]

# Bytes of weights that are read and measured together, so that small matrices (experts) fill the solvers.
BATCH_BYTES = 128 * 2**20


@dataclass(frozen=True)
class _Task:
    """A layer to be measured."""

    block: int  # position of its block; len(source) for what lies outside the blocks
    position: int  # among the layers of the block
    layer: LayerMetadata
    plan: WindowPlan

    @property
    def cost(self) -> float:
        """In multiply-adds, roughly: products of the windows, and the solver."""
        short, long = sorted((self.plan.rows, self.plan.cols))
        return self.plan.num_windows * short * short * (long + 4.0 * short)


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

    Norms and biases have no spectrum; layers that a window of the model's size does not fit into, such as routers, are
    left out with a warning. Layers are read a few at a time, so memory grows with the largest layer. Time grows with
    the number of layers times the cube of the window size; with the default windows that is 1/8 of an exact
    decomposition of the weights.

    Args:
        model: a model; or a hub id, a folder or `demo`, whose weights are then read one by one from safetensors; or a
            `BlockReader`. Not modified.
        config: windows and fit. With `window_rows="auto"` one size is chosen for the whole model.
        outside: measure embeddings and head too; they count in no block.
        device: where to measure; None: where the weights lie.
        ranks: with several processes each measures its share of the layers; all return the same report.
        progress: called with layers done and layers in all (of this process).

    Returns:
        alpha and its standard error for every layer and block, with what a reader must know in `notes`.

    Raises:
        ModelError: no layers that can be measured, NaN in a weight (the layer is named), or a checkpoint that is not
            found or not complete.
    """
    config = config or FarmsConfig()
    source = _reader(model, outside=outside)
    rows = model_rows(source, config)
    tasks, skipped = _tasks(source, config, rows, outside=outside)
    left_out = _left_out(skipped, len(tasks), rows)
    mine = share_out([task.cost for task in tasks], ranks.count)[ranks.index]
    parts = collected(lambda: _measure(source, [tasks[i] for i in mine], config, device, progress), ranks)
    found = {key: record for part, _ in parts for key, record in part.items()}
    without = _without_adapters([reason for _, reasons in parts for reason in reasons])
    records: dict[int, list[LayerRecord]] = {}
    for task in tasks:
        records.setdefault(task.block, []).append(found[task.block, task.position])
    metadata = [source.metadata(index) for index in range(len(source))]
    blocks = [
        BlockSpectrum(index=m.index, name=m.name, alpha=None, alpha_stderr=None, layers=tuple(records.get(i, ())))
        for i, m in enumerate(metadata)
    ]
    return SpectralReport(
        model=source.name,
        model_type=source.model_type,
        config=config,
        window_rows=rows,
        blocks=_with_scores(blocks, config),
        outside=tuple(records.get(len(source), ())),
        notes=(
            *left_out,
            *without,
            *_notes(tasks, [found[task.block, task.position] for task in tasks], rows, config),
        ),
    )


def _reader(model: nn.Module | BlockReader | str | Path, *, outside: bool) -> BlockReader:
    if isinstance(model, nn.Module):
        return ModelBlockSource(model)
    if isinstance(model, str | Path):
        # Not at the top: a model in memory needs none of it.
        from hf_farms.loading.opening import open_model

        return open_model(model, head=outside)
    return model


def _layers(source: BlockReader, *, outside: bool) -> Iterator[tuple[int, int, LayerMetadata]]:
    for index in range(len(source)):
        for position, layer in enumerate(source.metadata(index).layers):
            yield index, position, layer
    for position, view in enumerate(source.outside if outside else ()):
        yield len(source), position, view.metadata


def model_rows(source: BlockReader, config: FarmsConfig) -> int | None:
    """The window size of the model; None where matrices are left whole, or there are only convolutions."""
    if config.window_rows != "auto":
        return config.window_rows
    shapes = [layer.shape for _, _, layer in _layers(source, outside=False) if len(layer.shape) == 2]
    return model_window_rows([(m, n) for m, n in shapes], config.aspect_ratio) if shapes else None


def _tasks(
    source: BlockReader, config: FarmsConfig, rows: int | None, *, outside: bool
) -> tuple[list[_Task], list[LayerMetadata]]:
    """What to measure, and the layers too small for windows that nobody asked for."""
    tasks, skipped = [], []
    for index, position, layer in _layers(source, outside=outside):
        try:
            # Under "auto" the pieces of a convolution follow its own shape.
            plan = plan_weight(layer.shape, replace(config, window_rows=rows) if len(layer.shape) == 2 else config)
        except ValueError as error:
            raise ModelError(f"{layer.name}: {error}") from error
        if config.window_rows == "auto" and plan.lowered:
            skipped.append(layer)
        else:
            tasks.append(_Task(index, position, layer, plan))
    return tasks, skipped


Found = dict[tuple[int, int], LayerRecord]


def _measure(
    source: BlockReader,
    tasks: Sequence[_Task],
    config: FarmsConfig,
    device: str | torch.device | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Found, list[str]]:
    """The records, and the adapters that are in none of them, each with the reason."""
    found: Found = {}
    without: dict[str, None] = {}
    for batch in _batches(tasks):
        block = batch[0].block
        views = source.open(block).layers if block < len(source) else source.outside
        spectra = _spectra([views[task.position] for task in batch], [task.plan for task in batch], config, device)
        for task, spectrum in zip(batch, spectra, strict=True):
            found[task.block, task.position] = _record(task.layer, spectrum)
            without |= dict.fromkeys(views[task.position].left_out)
        if progress is not None:
            progress(len(found), len(tasks))
    return found, list(without)


def _batches(tasks: Sequence[_Task]) -> Iterator[list[_Task]]:
    """Consecutive layers of one block, as many as may be held together."""
    batch: list[_Task] = []
    size = 0
    for task in tasks:
        # Half precision or not is only known once the weight is read: count as for float32.
        weight = 4 * torch.Size(task.layer.shape).numel()
        if batch and (task.block != batch[0].block or size + weight > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += weight
    if batch:
        yield batch


def _spectra(
    layers: Sequence[LayerView], plans: Sequence[WindowPlan], config: FarmsConfig, device: str | torch.device | None
) -> list[LayerSpectrum]:
    weights = [layer.read(check=False) for layer in layers]
    if device is not None:
        weights = [weight.to(device) for weight in weights]
    try:
        return layer_spectra(weights, config, plans=plans)
    except ValueError as error:
        for layer in layers:
            layer.read()  # names the one that is not finite
        raise ModelError(f"{layers[0].name}: {error}") from error


def _record(layer: LayerMetadata, spectrum: LayerSpectrum) -> LayerRecord:
    left_out = ("eigenvalues", "rows_lowered")
    numbers = {name: value for name, value in vars(spectrum).items() if name not in left_out}
    return LayerRecord(name=layer.name, role=layer.role, shape=layer.shape, **numbers)


def _with_scores(blocks: list[BlockSpectrum], config: FarmsConfig) -> tuple[BlockSpectrum, ...]:
    fitted = [
        [
            LayerAlpha(r.role, r.alpha, r.alpha_stderr)
            for r in block.layers
            if r.alpha is not None and r.role != "router"
        ]
        for block in blocks
    ]
    scores = block_scores(fitted, config.block_score)
    return tuple(
        replace(block, alpha=score[0], alpha_stderr=score[1]) if score else block
        for block, score in zip(blocks, scores, strict=True)
    )


def _left_out(skipped: Sequence[LayerMetadata], measured: int, rows: int | None) -> tuple[str, ...]:
    """The note on layers that were left out; also a warning."""
    if not skipped:
        return ()
    note = (
        f"{len(skipped)} of {len(skipped) + measured} layers are smaller than windows of {rows} rows and were left "
        f"out, first {skipped[0].name}."
    )
    warnings.warn(note, HfFarmsWarning, stacklevel=3)
    return (note,)


def _without_adapters(reasons: Sequence[str]) -> tuple[str, ...]:
    """The note on adapters that could not be measured; also a warning."""
    if not reasons:
        return ()
    note = f"Alphas are those of the base weights, without the adapters: {', '.join(dict.fromkeys(reasons))}."
    warnings.warn(note, HfFarmsWarning, stacklevel=3)
    return (note,)


def _notes(
    tasks: Sequence[_Task], layers: Sequence[LayerRecord], rows: int | None, config: FarmsConfig
) -> tuple[str, ...]:
    lowered = [task.layer.name for task in tasks if task.plan.lowered]
    single = [layer for layer in layers if layer.num_windows == 1]
    unfitted = [layer.name for layer in layers if layer.alpha is None]
    notes = []
    if lowered:
        notes.append(
            f"{len(lowered)} of {len(layers)} layers are smaller than windows of {rows} rows and were measured with "
            f"smaller ones, first {lowered[0]}."
        )
    if single:
        notes.append(
            f"{len(single)} of {len(layers)} layers have a single window: no standard error, and no shrinkage for them."
        )
    if unfitted:
        # A tail of `mid` that starts so late can hold one eigenvalue only.
        late = config.fit == "mid" and config.tail_divisor < FarmsConfig.tail_divisor
        reasons = f"all zero, one distinct eigenvalue{f', or tail_divisor {config.tail_divisor}' if late else ''}"
        notes.append(f"{len(unfitted)} layers have no tail to fit ({reasons}), first {unfitted[0]}.")
    return tuple(notes)
