"""Spectra of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_farms.config import FarmsConfig
from hf_farms.config.roles import counts
from hf_farms.reports.base import Report
from hf_farms.reports.standing_out import StandingOut

__all__ = ["BlockSpectrum", "LayerRecord", "SpectralReport"]


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer: name, role, shape, and the numbers of its `LayerSpectrum`."""

    name: str
    role: str
    shape: tuple[int, ...]
    alpha: float | None
    alpha_stderr: float | None
    window_shape: tuple[int, int]
    num_windows: int
    num_eigenvalues: int
    ks_distance: float | None
    spectral_norm: float
    frobenius_norm_sq: float
    stable_rank: float
    alpha_hat: float | None
    entropy: float
    tail_min: float | None = None

    @property
    def counts(self) -> bool:
        """Whether it counts in its block; routers do not."""
        return counts(self.role)


@dataclass(frozen=True, kw_only=True)
class BlockSpectrum:
    """One block.

    Attributes:
        index: position, 0 is nearest to the input.
        name: module name.
        alpha: score of the block, by default the mean over roles of the mean alpha of their layers; routers, which
            nothing is decided for, do not count. None where no layer has an alpha.
        alpha_stderr: its standard error; None where no layer has one.
        layers: the measured layers.
    """

    index: int
    name: str
    alpha: float | None
    alpha_stderr: float | None
    layers: tuple[LayerRecord, ...]

    @property
    def num_weights(self) -> int:
        """Weights of the measured layers."""
        return sum(math.prod(layer.shape) for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class SpectralReport(Report):
    """Alpha and its error for every layer and block of a model.

    Attributes:
        model: hub id, folder name or class name.
        model_type: `config.model_type`, or the class name.
        config: options of the measurement.
        window_rows: the window size that "auto" came to; None for whole matrices.
        blocks: in order of depth.
        outside: embeddings and head, if they were measured.
        notes: what a reader must know (layers left out, lowered windows, layers without an error bar).
        standing_out: blocks that stand out as less trained; None in reports of earlier versions.
    """

    model: str
    model_type: str
    config: FarmsConfig
    window_rows: int | None
    blocks: tuple[BlockSpectrum, ...]
    outside: tuple[LayerRecord, ...] = ()
    notes: tuple[str, ...] = ()
    standing_out: StandingOut | None = None
