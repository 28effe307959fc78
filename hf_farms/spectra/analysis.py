"""Model -> SpectralReport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from hf_farms.allocation.scores import LayerAlpha, block_scores
from hf_farms.blocks import Block, BlockSource, LayerView, ModelBlockSource
from hf_farms.config import FarmsConfig
from hf_farms.errors import ModelError
from hf_farms.reports import BlockSpectrum, LayerRecord, SpectralReport
from hf_farms.spectra.spectrum import LayerSpectrum, layer_spectrum
from hf_farms.spectra.windows import model_window_rows

__all__ = ["analyze"]


def analyze(
    model: nn.Module | BlockSource,
    config: FarmsConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SpectralReport:
    """Measure every linear layer inside the blocks of a model.

    Embeddings, norms and the head are left out. Layers are read one at a time, so memory grows with the largest
    layer, time with the number of weights times the window size.

    Args:
        model: a model, or a `BlockSource`; not modified.
        config: windows and fit. With `window_rows="auto"` one size is chosen for the whole model.
        progress: called with blocks done and blocks in all.

    Returns:
        alpha and its standard error for every layer and block, with what a reader must know in `notes`.

    Raises:
        ModelError: no blocks with linear layers, or NaN in a weight (the layer is named).
    """
    config = config or FarmsConfig()
    source = ModelBlockSource(model) if isinstance(model, nn.Module) else model
    rows = _window_rows(source, config)
    measured = FarmsConfig(**{**vars(config), "window_rows": rows})
    blocks: list[BlockSpectrum] = []
    lowered: list[str] = []
    for index in range(len(source)):
        block, layers_lowered = _measure(source.open(index), measured)
        blocks.append(block)
        lowered += layers_lowered
        if progress is not None:
            progress(index + 1, len(source))
    return SpectralReport(
        model=source.name,
        model_type=source.model_type,
        config=config,
        window_rows=rows,
        blocks=_with_scores(blocks, config),
        notes=_notes(blocks, lowered, rows),
    )


def _window_rows(source: BlockSource, config: FarmsConfig) -> int | None:
    if config.window_rows != "auto":
        return config.window_rows
    shapes = [layer.shape for index in range(len(source)) for layer in source.metadata(index).layers]
    return model_window_rows(shapes, config.aspect_ratio)


def _measure(block: Block, config: FarmsConfig) -> tuple[BlockSpectrum, list[str]]:
    """One block, and the names of its layers that took smaller windows."""
    records, lowered = [], []
    for layer in block.layers:
        spectrum = _spectrum(layer, config)
        records.append(_record(layer, spectrum))
        if spectrum.rows_lowered:
            lowered.append(layer.name)
    meta = block.metadata
    return BlockSpectrum(
        index=meta.index, name=meta.name, alpha=None, alpha_stderr=None, layers=tuple(records)
    ), lowered


def _spectrum(layer: LayerView, config: FarmsConfig) -> LayerSpectrum:
    try:
        return layer_spectrum(layer.read(), config)
    except ValueError as error:
        raise ModelError(f"{layer.name}: {error}") from error


def _record(layer: LayerView, spectrum: LayerSpectrum) -> LayerRecord:
    left_out = ("eigenvalues", "rows_lowered")
    numbers = {name: value for name, value in vars(spectrum).items() if name not in left_out}
    return LayerRecord(name=layer.name, role=layer.metadata.role, shape=layer.metadata.shape, **numbers)


def _with_scores(blocks: list[BlockSpectrum], config: FarmsConfig) -> tuple[BlockSpectrum, ...]:
    fitted = [
        [LayerAlpha(r.role, r.alpha, r.alpha_stderr) for r in block.layers if r.alpha is not None] for block in blocks
    ]
    scores = block_scores(fitted, config.block_score)
    return tuple(
        replace(block, alpha=score[0], alpha_stderr=score[1]) if score else block
        for block, score in zip(blocks, scores, strict=True)
    )


def _notes(blocks: list[BlockSpectrum], lowered: list[str], rows: int | None) -> tuple[str, ...]:
    layers = [layer for block in blocks for layer in block.layers]
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
        notes.append(
            f"{len(unfitted)} layers have no tail to fit (all zero, or one distinct eigenvalue), first {unfitted[0]}."
        )
    return tuple(notes)
