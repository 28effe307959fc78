"""Options of spectral measurements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from hf_farms.config.checks import check, check_choice, check_fields, is_count, is_number, is_word
from hf_farms.registries import FITS

__all__ = ["BLOCK_SCORES", "FITS", "BlockScore", "FarmsConfig", "Fit"]

Fit = Annotated[str, FITS]
BlockScore = Literal["mean", "median", "trimmed", "standardised"]

BLOCK_SCORES: tuple[BlockScore, ...] = get_args(BlockScore)


@dataclass(frozen=True, kw_only=True)
class FarmsConfig:
    """Options for measuring the spectrum of a weight (FARMS, arXiv 2506.06280, section 3).

    Attributes:
        window_rows: rows r of a window. "auto" takes one size for the whole model, an eighth of the smaller side of the
            layers that hold most parameters, and leaves out layers that are smaller. Set a number to compare models of
            different sizes (it is lowered for smaller layers); larger windows cost the cube of their size. None
            measures whole matrices without windows: slower, and biased by the shape of a layer.
        aspect_ratio: Q = columns / rows of a window. Keep 1 unless you reproduce a paper: alphas of different Q do not
            compare.
        windows_per_dim: windows along each side, evenly spread. "auto" is 8. More windows lower the standard error a
            little; time grows with their square.
        fit: where the tail starts. "mid" (at the median) is the fastest and did best in BENCHMARKS.md. "peak" (by KS
            distance near the fullest bin of the histogram) and "goodness_of_fit" (by KS distance among all eigenvalues)
            follow the papers and need float64.
        tail_divisor: start of the "mid" tail, at index int(N / tail_divisor). Raise it, above 1, for a longer tail that
            reaches into the bulk of the spectrum; other fits ignore it.
        released_peak_bound: reproduce the units bug of the authors' released "peak" code. Set it only to compare with
            published numbers.
        block_score: how the alphas of a block become one number. "mean" is as published; "median" and "trimmed" resist
            a single unusual layer; "standardised" gives every role the same weight. None costs time.
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
        check(
            rows is None or is_word(rows, "auto") or is_count(rows),
            "window_rows",
            "'auto', None or a positive integer",
            rows,
        )
        check(
            is_word(windows, "auto") or is_count(windows),
            "windows_per_dim",
            "'auto' or a positive integer",
            windows,
        )
        check(
            is_number(self.aspect_ratio) and 0 < self.aspect_ratio < float("inf"),
            "aspect_ratio",
            "a positive number",
            self.aspect_ratio,
        )
        check_choice("fit", self.fit, FITS)
        check_choice("block_score", self.block_score, BLOCK_SCORES)
        divisor = self.tail_divisor
        check(
            # Other fits than `mid` do not read it, and older reports have 1 there.
            is_number(divisor)
            and (1 < divisor < float("inf") or (divisor == 1 and "tail_divisor" not in FITS[self.fit].options)),
            "tail_divisor",
            "a number above 1",
            divisor,
            "The tail begins at eigenvalue N / tail_divisor: 1 leaves nothing of it.",
        )
        check_fields(self)

    @classmethod
    def paper(cls) -> FarmsConfig:
        """Return the paper's setting for pruning: 15 x 15 windows of 2000 rows, Q = 1, released `peak`."""
        return cls(window_rows=2000, aspect_ratio=1.0, windows_per_dim=15, fit="peak", released_peak_bound=True)

    def whole_matrix(self) -> FarmsConfig:
        """Return the same fit on whole matrices: the measurement of AlphaPruning (allocation `alpha`)."""
        return replace(self, window_rows=None)
