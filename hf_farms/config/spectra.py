"""How spectra are measured."""

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
    """How a weight's spectrum is measured (FARMS, arXiv 2506.06280, section 3).

    Attributes:
        window_rows: rows r of a window. "auto": one size for the whole model, an eighth of the smaller side of the
            layers that hold most parameters; layers that such a window does not fit into are left out. A number is
            lowered for layers that are smaller, until r rows and round(Q r) columns fit. None: the whole matrix, no
            windows.
        aspect_ratio: Q = columns / rows of a window.
        windows_per_dim: windows along each side, evenly spread. "auto": 8.
        fit: where the tail starts. "mid": at the median; "peak": by KS distance, near the fullest bin of the
            histogram of log10 eigenvalues; "goodness_of_fit": by KS distance among all eigenvalues.
        tail_divisor: the `mid` tail starts at index int(N / tail_divisor); above 1, as 1 leaves no tail.
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
        """The paper's setting for pruning: 15 x 15 windows of 2000 rows, Q = 1, released `peak`."""
        return cls(window_rows=2000, aspect_ratio=1.0, windows_per_dim=15, fit="peak", released_peak_bound=True)

    def whole_matrix(self) -> FarmsConfig:
        """The same fit on the whole matrix: the measurement of AlphaPruning (allocation `alpha`)."""
        return replace(self, window_rows=None)
