"""A model trained with layer-wise learning rates, or with S2FT, or with both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_farms.config import FarmsLRConfig, S2FTConfig
from hf_farms.reports.base import Report
from hf_farms.reports.pruning import BaseModelRecord

__all__ = ["BlockFactor", "FarmsLRRecord", "LRMeasurement", "LayerSelection", "S2FTRecord", "TrainReport"]


@dataclass(frozen=True, kw_only=True)
class BlockFactor:
    """One block in one measurement.

    Attributes:
        name: of the block.
        alpha: its score; None where no layer has an alpha.
        alpha_stderr: its standard error; None where no layer has one.
        factor: mean over the parameters that it was applied to.
    """

    name: str
    alpha: float | None
    alpha_stderr: float | None
    factor: float


@dataclass(frozen=True, kw_only=True)
class LRMeasurement:
    """Alphas and factors from one step on; `seconds` is what it took to measure them."""

    step: int
    epoch: float | None
    seconds: float
    blocks: tuple[BlockFactor, ...]


@dataclass(frozen=True, kw_only=True)
class FarmsLRRecord:
    """Layer-wise learning rates: what was asked for (None: not recorded), and every measurement in order."""

    config: FarmsLRConfig | None
    measurements: tuple[LRMeasurement, ...]


@dataclass(frozen=True, kw_only=True)
class LayerSelection:
    """How many channels of one layer were trained: inputs of o and down, outputs of all others."""

    name: str
    num_selected: int


@dataclass(frozen=True, kw_only=True)
class S2FTRecord:
    """Selective training: what was asked for, and what was selected in every trained layer."""

    config: S2FTConfig
    layers: tuple[LayerSelection, ...]


@dataclass(frozen=True, kw_only=True)
class TrainReport(Report):
    """How a model was trained by the callbacks, and what came of it.

    Attributes:
        kind: tells it from the report of a pruned model.
        model: hub id or folder of the model that was trained further; None: not recorded, or trained from scratch.
        model_type: `config.model_type`.
        num_parameters: all parameters of the model, tied ones once; None: not recorded.
        num_trained: those that were trained; None: not recorded.
        steps: steps of the optimizer.
        epochs: passes over the data, also a part of one.
        arguments: settings of the training that matter, by their names.
        metrics: the last value of each that was logged, such as `eval_loss`.
        farms_lr: layer-wise learning rates; None: all layers learnt alike.
        s2ft: selective training; None: not used.
        base: what the Hub says of the model that was trained further.
        notes: what a reader must know.
    """

    kind: Literal["training"] = "training"
    model: str | None
    model_type: str
    num_parameters: int | None
    num_trained: int | None
    steps: int
    epochs: float | None
    arguments: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    farms_lr: FarmsLRRecord | None = None
    s2ft: S2FTRecord | None = None
    base: BaseModelRecord | None = None
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """`farms-lr`, `s2ft` or both of them."""
        used = {"s2ft": self.s2ft, "farms-lr": self.farms_lr}
        return " and ".join(name for name, record in used.items() if record is not None)
