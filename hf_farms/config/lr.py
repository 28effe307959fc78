"""Options of layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from hf_farms.config.checks import check, check_choice, check_fields, is_count, is_number, is_word
from hf_farms.config.ends import EARLIER_ENDS, LR_ENDS, LREnds
from hf_farms.config.renamed import NewValue, absent_before, renamed
from hf_farms.config.spectra import FarmsConfig
from hf_farms.registries import LR_MAPS

__all__ = [
    "LR_MAPS",
    "LR_QUANTITIES",
    "LR_UNITS",
    "FarmsLRConfig",
    "LRMap",
    "LRQuantity",
    "LRUnit",
    "LayerwiseLRConfig",
]

LRMap = Annotated[str, LR_MAPS]
LRUnit = Literal["block", "layer"]
LRQuantity = Literal["lr", "weight_decay", "both", "constant_decay"]

LR_UNITS: tuple[LRUnit, ...] = get_args(LRUnit)
LR_QUANTITIES: tuple[LRQuantity, ...] = get_args(LRQuantity)


def _ends_of(skip_ends: object, options: Mapping[str, object]) -> object:
    """Return the `ends` that does as `skip_ends` did, which knew single layers only for unit "layer"."""
    if skip_ends is True:
        return "released" if options.get("unit") == "layer" else "apart"
    # Anything but a switch is refused with the choices of `ends`.
    return EARLIER_ENDS if skip_ends is False else skip_ends


def _skips_ends(ends: object) -> bool:
    return ends in ("apart", "released")


@absent_before(ends=EARLIER_ENDS)
@renamed(
    farms="spectra",
    normalise="normalize",
    skip_ends=NewValue(name="ends", kind=bool, new=_ends_of, old=_skips_ends),
)
@dataclass(frozen=True, kw_only=True)
class FarmsLRConfig:
    """Layer-wise learning rates from alphas (TempBalance, NeurIPS 2023; Model Balancing, arXiv 2410.12178).

    Attributes:
        map: from alphas to factors on the learning rate. "linear" is the published default; "step" (by rank) ignores
            how far alphas lie apart; "sigmoid" follows Model Balancing; "sqrt" and "log2" change little and have mean
            1.
        min_scale: factor where alpha is smallest (best trained). Move it towards 1 if training becomes slow. "sqrt" and
            "log2" ignore both scales.
        max_scale: factor where alpha is largest. Lower it if training becomes unstable.
        released_step: use the "step" map of the released code, which never reaches max_scale. Set it only to reproduce
            published numbers.
        unit: share one factor in a "block", or give every "layer" its own. Layers are noisier, and the log grows with
            them.
        quantity: where the factor is applied: "lr", "weight_decay" or "both". "constant_decay" scales the learning rate
            and divides weight decay by the same factor, so that AdamW's decay per step stays as it is.
        shrink: move factors towards 1 when alphas differ by little more than noise. Turn it off only to reproduce
            published numbers.
        normalize: divide by the mean factor, weighted by parameters. Set it to keep the mean learning rate unchanged.
        ends: how the first and the last block enter the map: in healthy models too, their alphas differ from others.
            "measured": like all blocks. "lowest" and "median" replace their alpha by the lowest or the median of the
            others; "apart" leaves them at factor 1. "first-lowest", "first-median" and "first-apart" change the first
            block only; "first-capped" is "first-lowest" unless the first block has the lowest alpha by itself. With
            unit "layer", all layers of these blocks are replaced or left at 1; "released" leaves only the first and the
            last layer at 1, as the released code does (for blocks, it is "apart"). Change it where the first or the
            last block has an extreme alpha in every measurement.
        min_eigenvalues: smallest spectrum that gets a factor. Raise it if small layers jump between measurements.
        outside: give embeddings and head factors too. Off by default: their spectra say less about training, and they
            are large to measure.
        start: first measurement: "warmup" (when it is over), a step, or a fraction of all steps. Spectra of a model
            that has hardly been trained say little, so start later for training from scratch.
        interval: steps between measurements, a fraction of all steps, or "epoch". With "auto", ten measurements, or as
            many as `max_share` allows: the number follows from the sizes of the model and of the first step, is printed
            once, and stays the same when the training is resumed. Each one costs an `analyze` of the model, so set
            a larger number for large models if you set one.
        max_share: largest share of the training time that measuring may take, as estimated, with interval "auto"; there
            is at least one measurement. Raise it to measure more often in short trainings, lower it if logged times
            (`farms_lr/share_of_time`) are higher than the estimate.
        monitor: measure and log, and change nothing: all factors are 1. Set it to watch alphas in a training whose
            rates are to stay as they are.
        frozen: measure once and keep those factors. Set it for short fine-tuning.
        smoothing: share of the earlier alphas in every new one, in [0, 1). Raise it if factors jump.
        spectra: how spectra are measured. Change it for another window size or fit; see `FarmsConfig`.
    """

    map: LRMap = "linear"
    min_scale: float = 0.5
    max_scale: float = 1.5
    released_step: bool = False
    unit: LRUnit = "block"
    quantity: LRQuantity = "lr"
    shrink: bool = True
    normalize: bool = False
    ends: LREnds = EARLIER_ENDS
    min_eigenvalues: int = 50
    outside: bool = False
    start: int | float | Literal["warmup"] = "warmup"
    interval: int | float | Literal["epoch", "auto"] = "auto"
    max_share: float = 0.01
    monitor: bool = False
    frozen: bool = False
    smoothing: float = 0.0
    spectra: FarmsConfig = field(default_factory=FarmsConfig)

    def __post_init__(self) -> None:
        check_choice("map", self.map, LR_MAPS)
        check_choice("unit", self.unit, LR_UNITS)
        check_choice("quantity", self.quantity, LR_QUANTITIES)
        check_choice("ends", self.ends, LR_ENDS)
        for name in ("min_scale", "max_scale"):
            value = getattr(self, name)
            check(is_number(value) and 0 < value < float("inf"), name, "a positive number", value)
        check(self.min_scale <= self.max_scale, "min_scale", f"at most max_scale ({self.max_scale})", self.min_scale)
        check(is_count(self.min_eigenvalues), "min_eigenvalues", "a positive integer", self.min_eigenvalues)
        check(
            is_number(self.smoothing) and 0 <= self.smoothing < 1, "smoothing", "at least 0 and below 1", self.smoothing
        )
        start, interval = self.start, self.interval
        check(
            is_word(start, "warmup") or (is_number(start) and start >= 0 and (isinstance(start, int) or start < 1)),
            "start",
            "'warmup', a step, or a fraction of all steps below 1",
            start,
        )
        check(
            is_word(interval, "epoch")
            or is_word(interval, "auto")
            or is_count(interval)
            or (isinstance(interval, float) and 0 < interval < 1),
            "interval",
            "'epoch', a positive number of steps, a fraction of all steps between 0 and 1, or 'auto'",
            interval,
        )
        share = self.max_share
        check(is_number(share) and 0 < share < 1, "max_share", "above 0 and below 1", share)
        check_fields(self)

    @classmethod
    def alphadecay(cls, **options: Any) -> FarmsLRConfig:
        """Return the setting of AlphaDecay (NeurIPS 2025, arXiv 2506.14562): weight decay by alpha, layer by layer.

        Each layer's weight decay is multiplied by a factor from 2/3 (smallest alpha) to 3 (largest), from whole
        matrices, again every 500 steps. Learning rates stay as they are. The published runs with AdamW use
        `max_scale=5`. Layers are those inside the blocks, of which the first and the last keep factor 1; the released
        code counts the head as the last one.

        Args:
            options: fields that differ from this setting.
        """
        setting: dict[str, Any] = {
            "quantity": "weight_decay",
            "unit": "layer",
            "map": "linear",
            "min_scale": 2 / 3,
            "max_scale": 3.0,
            "shrink": False,
            "ends": "released",
            "start": 0,
            "interval": 500,
            "spectra": FarmsConfig(window_rows=None),
        }
        return cls(**(setting | options))


@dataclass(frozen=True, kw_only=True)
class LayerwiseLRConfig:
    """Factors on the learning rate or the weight decay that the user gives (`LayerwiseLRCallback`).

    Attributes:
        quantity: where the factor is applied: "lr", "weight_decay" or "both". "constant_decay" scales the learning rate
            and divides weight decay by the same factor, so that AdamW's decay per step stays as it is.
        interval: steps between two calls of functions among the factors, or "epoch". Raise it if a function is slow.
    """

    quantity: LRQuantity = "lr"
    interval: int | Literal["epoch"] = 1

    def __post_init__(self) -> None:
        check_choice("quantity", self.quantity, LR_QUANTITIES)
        interval = self.interval
        ok = is_word(interval, "epoch") or is_count(interval)
        check(ok, "interval", "'epoch' or a positive number of steps", interval)
