"""Every option and its default, once. Frozen, keyword-only, validated on creation; loads no torch.

The same object feeds the function, the command line, the report and the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["CalibrationConfig", "EvaluationConfig", "FarmsConfig", "PruneConfig", "default_output_name"]

Fit = Literal["mid", "peak", "goodness_of_fit"]
BlockScore = Literal["mean", "median", "trimmed", "standardised"]
Method = Literal["magnitude", "wanda"]
Allocation = Literal["uniform", "farms", "alpha"]

FITS: tuple[Fit, ...] = ("mid", "peak", "goodness_of_fit")
BLOCK_SCORES: tuple[BlockScore, ...] = ("mean", "median", "trimmed", "standardised")
METHODS: tuple[Method, ...] = ("magnitude", "wanda")
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "farms", "alpha")


def _check(ok: bool, name: str, constraint: str, value: object, remedy: str = "") -> None:
    if not ok:
        raise ValueError(f"{name} must be {constraint}, got {value!r}.{' ' + remedy if remedy else ''}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    _check(value in choices, name, f"one of {', '.join(choices)}", value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class FarmsConfig:
    """How a weight's spectrum is measured (FARMS, arXiv 2506.06280, section 3).

    Attributes:
        window_rows: rows r of a window. "auto": one size for the whole model, an eighth of the smaller side of the
            layers that hold most parameters; layers that such a window does not fit into are left out. A number is
            lowered for layers that are smaller. None: the whole matrix, no windows.
        aspect_ratio: Q = columns / rows of a window.
        windows_per_dim: windows along each side, evenly spread. "auto": 8.
        fit: where the tail starts. "mid": at the median; "peak": by KS distance, near the fullest bin of the
            histogram of log10 eigenvalues; "goodness_of_fit": by KS distance among all eigenvalues.
        tail_divisor: the `mid` tail starts at index int(N / tail_divisor).
        released_peak_bound: reproduce the unit slip of the released `peak` (log10 of the lower bound compared with
            the eigenvalue itself), to compare with published numbers.
        block_score: how the alphas of a block's roles become one number: "mean" (as published), "median", "trimmed"
            (mean without the extremes) or "standardised" (mean after each role is brought to one mean and deviation).
    """

    window_rows: int | Literal["auto"] | None = "auto"
    aspect_ratio: float = 1.0
    windows_per_dim: int | Literal["auto"] = "auto"
    fit: Fit = "mid"
    tail_divisor: float = 2.0
    released_peak_bound: bool = False
    block_score: BlockScore = "mean"

    def __post_init__(self) -> None:
        rows, windows = self.window_rows, self.windows_per_dim
        _check(rows in ("auto", None) or _is_count(rows), "window_rows", "'auto', None or a positive integer", rows)
        _check(windows == "auto" or _is_count(windows), "windows_per_dim", "'auto' or a positive integer", windows)
        _check(
            _is_number(self.aspect_ratio) and 0 < self.aspect_ratio < float("inf"),
            "aspect_ratio",
            "a positive number",
            self.aspect_ratio,
        )
        _check_choice("fit", self.fit, FITS)
        _check_choice("block_score", self.block_score, BLOCK_SCORES)
        _check(
            _is_number(self.tail_divisor) and 1 <= self.tail_divisor < float("inf"),
            "tail_divisor",
            "a number of at least 1",
            self.tail_divisor,
        )

    @classmethod
    def paper(cls) -> FarmsConfig:
        """The paper's setting for pruning: 15 x 15 windows of 2000 rows, Q = 1, released `peak`."""
        return cls(window_rows=2000, aspect_ratio=1.0, windows_per_dim=15, fit="peak", released_peak_bound=True)

    def whole_matrix(self) -> FarmsConfig:
        """The same fit on the whole matrix: the measurement of AlphaPruning (allocation `alpha`)."""
        return replace(self, window_rows=None)


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
        _check(
            _is_number(self.sparsity) and 0 <= self.sparsity < 1,
            "sparsity",
            "at least 0 and below 1",
            self.sparsity,
            "It is a fraction: 0.5 removes half of the weights.",
        )
        _check_choice("method", self.method, METHODS)
        _check_choice("allocation", self.allocation, ALLOCATIONS)
        _check(_is_number(self.spread) and 0 <= self.spread < 1, "spread", "at least 0 and below 1", self.spread)
        _check(
            _is_number(self.max_sparsity) and 0 < self.max_sparsity <= 1,
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
        _check(bool(self.source), "calibration source", "'speeches', 'self', a file or a dataset id", self.source)
        _check(_is_count(self.num_sequences), "num_sequences", "a positive integer", self.num_sequences)
        _check(
            isinstance(self.sequence_length, int) and self.sequence_length >= 2,
            "sequence_length",
            "an integer of at least 2",
            self.sequence_length,
        )
        _check(isinstance(self.seed, int) and self.seed >= 0, "seed", "an integer of at least 0", self.seed)


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
        _check(
            isinstance(self.context_length, int) and self.context_length >= 2,
            "context_length",
            "an integer of at least 2",
            self.context_length,
        )
        _check(
            self.max_windows is None or _is_count(self.max_windows),
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
