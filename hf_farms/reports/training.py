"""A model trained with layer-wise learning rates, or with S2FT, or with both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hf_farms.config import FarmsLRConfig, LayerwiseLRConfig, S2FTConfig
from hf_farms.reports.base import Report
from hf_farms.reports.lr_history import BlockFactor, LayerFactor, LRHistoryEntry, LRMeasurement
from hf_farms.reports.pruning import BaseModelRecord

__all__ = [
    "BlockFactor",
    "FarmsLRRecord",
    "LRMeasurement",
    "LayerFactor",
    "LayerSelection",
    "LayerwiseLRRecord",
    "S2FTRecord",
    "TrainReport",
]


@dataclass(frozen=True, kw_only=True)
class FarmsLRRecord:
    """Layer-wise learning rates.

    Attributes:
        config: options of the run; None: not recorded.
        measurements: all of them, in order.
        layers: every layer in the last one, where each had a factor of its own (unit "layer"); else none.
    """

    config: FarmsLRConfig | None
    measurements: tuple[LRMeasurement, ...]
    layers: tuple[LayerFactor, ...] = ()

    @classmethod
    def from_history(cls, entries: Sequence[LRHistoryEntry], config: FarmsLRConfig | None) -> FarmsLRRecord:
        """Build the record from the entries of a history file."""
        measurements = (
            LRMeasurement(step=entry.step, epoch=entry.epoch, seconds=entry.seconds, blocks=entry.blocks)
            for entry in entries
        )
        by_layer = config is not None and config.unit == "layer"
        return cls(
            config=config,
            measurements=tuple(measurements),
            layers=entries[-1].layers if entries and by_layer else (),
        )


@dataclass(frozen=True, kw_only=True)
class LayerwiseLRRecord:
    """Layer-wise factors that the user gave.

    Attributes:
        config: options of the run.
        factors: the last ones, by pattern on the names of the parameters, in the order in which they count.
        scheduled: whether they are functions, whose value may change during the training.
    """

    config: LayerwiseLRConfig
    factors: dict[str, float]
    scheduled: bool


@dataclass(frozen=True, kw_only=True)
class LayerSelection:
    """Number of trained channels of one layer: inputs of o and down, outputs of all others."""

    name: str
    num_selected: int


@dataclass(frozen=True, kw_only=True)
class S2FTRecord:
    """Selective training: the options, and the selection in every trained layer."""

    config: S2FTConfig
    layers: tuple[LayerSelection, ...]


@dataclass(frozen=True, kw_only=True)
class TrainReport(Report):
    """The settings and the results of a training with the callbacks.

    Attributes:
        kind: tells it from the report of a pruned model.
        model: hub id or folder of the model that was trained further; None: not recorded, or trained from scratch.
        model_type: `config.model_type`.
        num_parameters: all parameters of the model, tied ones once; None: not recorded.
        num_trained: those that were trained; None: not recorded.
        architecture: class of the model; None: not recorded.
        task: what it is for, by the Hub's name, such as `text-classification`; None: not recorded, or none of the
            Hub's.
        steps: steps of the optimizer.
        best_step: step of the model that was saved, where the Trainer chose the best one; None: the last.
        epochs: passes over the data, also a part of one.
        arguments: settings of the training that matter, by their names.
        metrics: the last value of each that was logged up to the model that was saved, such as `eval_loss`. What
            `trainer.evaluate()` gives after the training is not among them: it may be of other data.
        farms_lr: layer-wise learning rates; None: all layers learned alike.
        layerwise_lr: layer-wise factors of the user; None: not used.
        s2ft: selective training; None: not used.
        base: what the Hub says of the model that was trained further.
        notes: what a reader must know.
    """

    shared: ClassVar[bool] = True

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
    architecture: str | None = None
    task: str | None = None
    best_step: int | None = None
    layerwise_lr: LayerwiseLRRecord | None = None

    @property
    def method(self) -> str:
        """`farms-lr` or `layerwise-lr`, `s2ft`, or both of them."""
        used = {"s2ft": self.s2ft, "farms-lr": self.farms_lr, "layerwise-lr": self.layerwise_lr}
        return " and ".join(name for name, record in used.items() if record is not None)
