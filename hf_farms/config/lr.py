"""How layers get learning rates of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from hf_farms.config.checks import check, check_choice, check_fields, is_count, is_number, is_word
from hf_farms.config.renamed import renamed
from hf_farms.config.spectra import FarmsConfig
from hf_farms.registries import LR_MAPS

__all__ = ["LR_MAPS", "LR_QUANTITIES", "LR_UNITS", "FarmsLRConfig", "LRMap", "LRQuantity", "LRUnit"]

LRMap = Annotated[str, LR_MAPS]
LRUnit = Literal["block", "layer"]
LRQuantity = Literal["lr", "weight_decay", "both", "constant_decay"]

LR_UNITS: tuple[LRUnit, ...] = get_args(LRUnit)
LR_QUANTITIES: tuple[LRQuantity, ...] = get_args(LRQuantity)


@renamed(farms="spectra")
@dataclass(frozen=True, kw_only=True)
class FarmsLRConfig:
    """Layer-wise learning rates from alphas (TempBalance, NeurIPS 2023; Model Balancing, arXiv 2410.12178).

    Attributes:
        map: from alphas to factors on the learning rate: "linear", "sqrt", "log2", "step" (by rank) or "sigmoid".
        min_scale: factor where alpha is smallest (the best trained). Not used by "sqrt" and "log2", whose mean is 1.
        max_scale: factor where alpha is largest.
        released_step: the "step" of the released code, which never reaches max_scale.
        unit: what gets one factor: a "block", or every "layer" for itself, which the log then has too.
        quantity: what the factor is applied to: "lr", "weight_decay", "both", or "constant_decay": the learning rate,
            with weight decay divided by it, so that AdamW's decay (lr times weight decay) stays as it is.
        shrink: shrink factors to 1 by the reliability of the alphas, so that pure noise changes nothing.
        normalise: divide by the mean factor, weighted by parameters.
        skip_ends: leave the first and the last unit at factor 1.
        min_eigenvalues: layers with fewer stay at factor 1.
        outside: embeddings and head take part; else they stay at factor 1.
        start: the first measurement: "warmup" (when it is over), a step, or a fraction of all steps.
        interval: steps between measurements, a fraction of all steps, or "epoch".
        frozen: measure once and keep those factors.
        smoothing: share of the earlier alphas in every new one, in [0, 1).
        spectra: how spectra are measured.
    """

    map: LRMap = "linear"
    min_scale: float = 0.5
    max_scale: float = 1.5
    released_step: bool = False
    unit: LRUnit = "block"
    quantity: LRQuantity = "lr"
    shrink: bool = True
    normalise: bool = False
    skip_ends: bool = False
    min_eigenvalues: int = 50
    outside: bool = False
    start: int | float | Literal["warmup"] = "warmup"
    interval: int | float | Literal["epoch"] = 0.1
    frozen: bool = False
    smoothing: float = 0.0
    spectra: FarmsConfig = field(default_factory=FarmsConfig)

    def __post_init__(self) -> None:
        check_choice("map", self.map, LR_MAPS)
        check_choice("unit", self.unit, LR_UNITS)
        check_choice("quantity", self.quantity, LR_QUANTITIES)
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
            is_word(interval, "epoch") or is_count(interval) or (isinstance(interval, float) and 0 < interval < 1),
            "interval",
            "'epoch', a positive number of steps, or a fraction of all steps between 0 and 1",
            interval,
        )
        check_fields(self)
