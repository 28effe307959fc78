"""Arguments and properties of the input that the effect of options depends on, beside the configs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_farms.config.prune import PruneConfig

__all__ = ["AnalyzeArguments", "EvaluateArguments", "Inputs", "ModelKind", "PruneArguments", "TextKind"]

ModelKind = Literal["demo", "folder", "hub", "report"]
TextKind = Literal["built-in", "self", "file", "table", "dataset"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Properties of the input that the effect of a field depends on; None: unknown, so the field may have an effect.

    Attributes:
        model: kind of the model.
        text: kind of the text.
        measured: whether a model is loaded; False: only saved reports are read.
        checkpoint: whether files of a checkpoint are read; demo models have none that are pickled.
        calibrates: whether calibration text is read.
        selects: whether something is chosen or accepted on a selection text.
        perplexity: whether perplexity is measured.
    """

    model: ModelKind | None = None
    text: TextKind | None = None
    measured: bool = True
    checkpoint: bool = True
    calibrates: bool = True
    selects: bool = True
    perplexity: bool = True


@dataclass(frozen=True, kw_only=True)
class AnalyzeArguments:
    """Arguments of `analyze_checkpoint` and `compare_checkpoints` beside their configs."""

    outside: bool = False


@dataclass(frozen=True, kw_only=True)
class PruneArguments:
    """Arguments of `prune_checkpoint` beside its configs, and two that decide about them."""

    allocation: str = PruneConfig().allocation
    evaluates: bool = True
    baseline: bool = True


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Arguments of `evaluate_checkpoint` beside its configs, and two that decide about them."""

    perplexity: bool = True
    tasks: tuple[str, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int | str = 8
    include_path: str | Path | None = None
    base: bool | None = None
