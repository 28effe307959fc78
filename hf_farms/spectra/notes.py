"""Notes of a SpectralReport: skipped layers, adapters, lowered windows, failed fits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from hf_farms.blocks import LayerMetadata
from hf_farms.config import FarmsConfig
from hf_farms.errors import HfFarmsWarning
from hf_farms.registries import FITS
from hf_farms.reports import LayerRecord

__all__ = ["adapter_notes", "layer_notes", "skipped_notes"]


def skipped_notes(skipped: Sequence[LayerMetadata], measured: int, rows: int | None) -> tuple[str, ...]:
    """Describe skipped layers; also warn.

    Args:
        skipped: layers smaller than the windows.
        measured: number of other layers.
        rows: window rows of the model.
    """
    if not skipped:
        return ()
    note = (
        f"{len(skipped)} of {len(skipped) + measured} layers are smaller than windows of {rows} rows and were left "
        f"out, first {skipped[0].name}."
    )
    warnings.warn(note, HfFarmsWarning, stacklevel=3)
    return (note,)


def adapter_notes(reasons: Sequence[str]) -> tuple[str, ...]:
    """Describe adapters that were not applied to the measured weights; also warn."""
    if not reasons:
        return ()
    note = f"Alphas are those of the base weights, without the adapters: {', '.join(dict.fromkeys(reasons))}."
    warnings.warn(note, HfFarmsWarning, stacklevel=3)
    return (note,)


def layer_notes(
    layers: Sequence[LayerRecord], lowered: Sequence[str], rows: int | None, config: FarmsConfig
) -> tuple[str, ...]:
    """Describe layers with smaller windows, a single window, or no fit.

    Args:
        layers: records of all measured layers.
        lowered: names of layers that were measured with smaller windows.
        rows: window rows of the model.
        config: windows and fit.
    """
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
        # A `mid` tail that starts this late can contain a single eigenvalue.
        late = "tail_divisor" in FITS[config.fit].options and config.tail_divisor < FarmsConfig.tail_divisor
        reasons = f"all zero, one distinct eigenvalue{f', or tail_divisor {config.tail_divisor}' if late else ''}"
        notes.append(f"{len(unfitted)} layers have no tail to fit ({reasons}), first {unfitted[0]}.")
    return tuple(notes)
