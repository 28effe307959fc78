"""What is pruned, and the texts that it is calibrated and measured on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_farms.config.checks import check, check_choice, is_count, is_number
from hf_farms.config.spectra import FarmsConfig

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "Allocation",
    "CalibrationConfig",
    "EvaluationConfig",
    "Method",
    "PruneConfig",
    "default_output_name",
]

Method = Literal["magnitude", "wanda"]
Allocation = Literal["uniform", "farms", "alpha"]

METHODS: tuple[Method, ...] = ("magnitude", "wanda")
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "farms", "alpha")


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What is removed, and by which rule.

    Attributes:
        sparsity: zeros as a fraction of the weights of the pruned layers, in [0, 1); hit to the weight.
        method: "magnitude" (|W|) or "wanda" (|W| times the norm of the layer's input, arXiv 2306.11695).
        allocation: how the total is spread over blocks. "uniform"; "farms": by block-mean alpha over windows;
            "alpha": the same map on whole-matrix alpha (AlphaPruning, arXiv 2410.10912).
        spread: epsilon of the map; block sparsities lie within (1 - spread) / (1 + spread) of each other.
        shrink: scale the spread by the reliability of the block scores, so that pure noise changes nothing.
        max_sparsity: no block is pruned further than this (unless the target itself is higher).
        farms: how spectra are measured.
    """

    sparsity: float = 0.5
    method: Method = "wanda"
    allocation: Allocation = "farms"
    spread: float = 0.1
    shrink: bool = True
    max_sparsity: float = 0.999
    farms: FarmsConfig = field(default_factory=FarmsConfig)

    def __post_init__(self) -> None:
        check(
            is_number(self.sparsity) and 0 <= self.sparsity < 1,
            "sparsity",
            "at least 0 and below 1",
            self.sparsity,
            "It is a fraction: 0.5 removes half of the weights.",
        )
        check_choice("method", self.method, METHODS)
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check(is_number(self.spread) and 0 <= self.spread < 1, "spread", "at least 0 and below 1", self.spread)
        check(
            is_number(self.max_sparsity) and 0 < self.max_sparsity <= 1,
            "max_sparsity",
            "above 0 and at most 1",
            self.max_sparsity,
        )

    def measurement(self) -> FarmsConfig:
        """The spectral measurement that this allocation is planned on."""
        return self.farms.whole_matrix() if self.allocation == "alpha" else self.farms


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The sequences that activations are measured on.

    Attributes:
        source: "speeches" (public-domain English text inside the package), "self" (sampled from the model itself), a
            text, JSON, JSONL or parquet file, or the id of a dataset on the Hub. BENCHMARKS.md has the comparison.
        column: the column that holds the text, for tables and datasets.
        subset: the configuration of a Hub dataset ("en" of allenai/c4).
        split: the split of a Hub dataset.
        num_sequences: how many.
        sequence_length: tokens in each; lowered, with a note, to the context length of the model.
        seed: of the choice of passages, or of the sampling.
    """

    source: str = "speeches"
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    num_sequences: int = 32
    sequence_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check(bool(self.source), "calibration source", "'speeches', 'self', a file or a dataset id", self.source)
        check(is_count(self.num_sequences), "num_sequences", "a positive integer", self.num_sequences)
        check(
            isinstance(self.sequence_length, int) and self.sequence_length >= 2,
            "sequence_length",
            "an integer of at least 2",
            self.sequence_length,
        )
        check(isinstance(self.seed, int) and self.seed >= 0, "seed", "an integer of at least 0", self.seed)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The text that perplexity is measured on.

    Attributes:
        source: "speeches" (held-out public-domain text inside the package), a file or a dataset, as for calibration;
            None: no perplexity.
        column: the column that holds the text.
        subset: the configuration of a Hub dataset.
        split: the split of a Hub dataset.
        context_length: tokens in a window; lowered, with a note, to the context length of the model.
        max_windows: how many windows from the start of the text; None: all.
    """

    source: str | None = "speeches"
    column: str = "text"
    subset: str | None = None
    split: str = "test"
    context_length: int = 512
    max_windows: int | None = 40

    def __post_init__(self) -> None:
        check(
            isinstance(self.context_length, int) and self.context_length >= 2,
            "context_length",
            "an integer of at least 2",
            self.context_length,
        )
        check(
            self.max_windows is None or is_count(self.max_windows),
            "max_windows",
            "None or a positive integer",
            self.max_windows,
        )


def default_output_name(model: str, config: PruneConfig) -> str:
    """The folder and repository name of a pruned model, such as `Llama-2-7b-farms-wanda-50`.

    Args:
        model: hub id, folder or `demo`.
        config: gives allocation, method and sparsity.
    """
    name = model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return f"{name}-{config.allocation}-{config.method}-{_percent(config.sparsity)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}"
