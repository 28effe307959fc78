"""Plan and cut the windows of a weight, of one size and aspect ratio (FARMS, arXiv 2506.06280, section 3).

Shapes: m x n weight (out, in), r x c window with c = round(Q r), w windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from hf_farms.config import FarmsConfig

__all__ = [
    "WindowPlan",
    "cut_windows",
    "model_window_rows",
    "plan_convolution",
    "plan_weight",
    "plan_windows",
    "sample_windows",
]

# Window rows of a model: its typical smaller side divided by this, but at least 32 and at most half that side.
# On a square layer, 8 x 8 windows of an eighth of the side are disjoint. Chosen by measurement, see
# BENCHMARKS.md, "Windows" and "Block scores".
SIDES_PER_WINDOW = 8
SMALLEST_AUTO_ROWS = 32
# Windows along each side of a matrix. They overlap if fewer fit without overlap, and are spread out if more fit.
WINDOWS_PER_DIM = 8


@dataclass(frozen=True)
class WindowPlan:
    """Windows of one weight: `rows x cols` each, one for every pair of row start and column start.

    Attributes:
        rows: rows of a window.
        cols: columns of a window.
        row_starts: first row of the windows.
        col_starts: first column of the windows.
        lowered: whether the requested rows did not fit and were reduced.
        kernel: matrices in the weight: kernel positions of a convolution; 1 for a matrix.
        pieces: number of separate fits: one per window of a convolution; 1 for a matrix, whose windows are pooled.
        transposed: whether windows are cut from the transposed matrices (convolutions with fewer outputs than inputs).
    """

    rows: int
    cols: int
    row_starts: tuple[int, ...]
    col_starts: tuple[int, ...]
    lowered: bool = False
    kernel: int = 1
    pieces: int = 1
    transposed: bool = False

    @property
    def num_windows(self) -> int:
        """Total number of windows."""
        return len(self.row_starts) * len(self.col_starts) * self.kernel

    @property
    def num_disjoint(self) -> tuple[float, float]:
        """Number of disjoint windows that fit into the covered area, along the rows and along the columns."""
        sides = ((self.row_starts, self.rows), (self.col_starts, self.cols))
        down, across = (min(len(starts), (starts[-1] + size) / size) for starts, size in sides)
        return down, across


def window_cols(rows: int, aspect_ratio: float) -> int:
    """Return the columns of a window, c = round(Q r), at least 1."""
    return max(1, round(aspect_ratio * rows))


def largest_fitting_rows(m: int, n: int, aspect_ratio: float) -> int:
    """Return the largest r with r <= m and round(Q r) <= n; 0 if none fits."""
    # Start just above the answer: rounding can admit at most half a column more than Q r itself.
    rows = min(m, math.floor((n + 0.5) / aspect_ratio) + 1)
    while rows > 0 and window_cols(rows, aspect_ratio) > n:
        rows -= 1
    return rows


def model_window_rows(shapes: Iterable[tuple[int, ...]], aspect_ratio: float = 1.0) -> int:
    """Choose one window size for all layers of a model, so that finite-size bias is the same in all of them.

    An eighth of the typical smaller side (the largest possible window rows of a layer), but at least 32 rows and at
    most half of that side. The typical side is the median weighted by parameters, so that small layers (k and v with
    grouped-query attention, routers) do not determine it.

    Args:
        shapes: `(m, n)` of every layer.
        aspect_ratio: Q = columns / rows of a window.

    Raises:
        ValueError: there are no layers.
    """
    sides = sorted((largest_fitting_rows(m, n, aspect_ratio), m * n) for m, n in shapes)
    if not sides:
        raise ValueError("shapes must contain at least one layer, got none.")
    half = sum(size for _, size in sides) / 2
    side = next(
        side for (side, _), total in zip(sides, accumulate(size for _, size in sides), strict=True) if total >= half
    )
    return max(1, side // SIDES_PER_WINDOW, min(SMALLEST_AUTO_ROWS, side // 2))


def plan_windows(m: int, n: int, config: FarmsConfig) -> WindowPlan:
    """Plan the windows of one matrix.

    Rows that do not fit are lowered to the largest r with r <= m and round(Q r) <= n. For Q = 1 this is the clamp of
    the released code, r <= min(m, n). For other Q it keeps larger windows of the right aspect ratio: for Q = 1/4 a
    512 x 64 weight keeps windows of 128 x 32, while the released code clamps them to 64 x 16; for Q > 1 the released
    clamp can leave fewer than Q r columns.

    Args:
        m: rows of the weight.
        n: columns of the weight.
        config: windows. `window_rows="auto"` chooses the size for this weight alone; pass that of a model as integer.

    Returns:
        The plan; `lowered` if the requested rows did not fit.

    Raises:
        ValueError: no window of this aspect ratio fits into the weight.
    """
    if config.window_rows is None:
        return WindowPlan(m, n, (0,), (0,))
    auto = config.window_rows == "auto"
    requested = model_window_rows([(m, n)], config.aspect_ratio) if auto else int(config.window_rows)
    rows = min(requested, largest_fitting_rows(m, n, config.aspect_ratio))
    if rows < 1:
        raise ValueError(
            f"aspect_ratio must be at most {n} for a weight of {m} x {n}, got {config.aspect_ratio!r}. "
            "Choose a smaller Q or window_rows=None."
        )
    cols = window_cols(rows, config.aspect_ratio)
    count = WINDOWS_PER_DIM if config.windows_per_dim == "auto" else config.windows_per_dim
    return WindowPlan(
        rows,
        cols,
        _spread_starts(m, rows, count),
        _spread_starts(n, cols, count),
        lowered=rows < requested,
    )


def plan_convolution(m: int, n: int, kernel: int, config: FarmsConfig) -> WindowPlan:
    """Plan the windows of a convolution (slicing of the paper).

    Every kernel position has an `(m, n)` matrix, transposed if necessary to have more rows than columns. It is cut
    along its rows into adjacent pieces as wide as the matrix and Q times as long; a remainder at the end is not used.
    An integer `window_rows` limits the width of the pieces; "auto" keeps the width of the layer.

    Args:
        m: output channels.
        n: input channels (per group).
        kernel: number of kernel positions.
        config: window rows and aspect ratio. `windows_per_dim` is not used.
    """
    long, short = max(m, n), min(m, n)
    if config.window_rows is None:
        return WindowPlan(long, short, (0,), (0,), kernel=kernel, transposed=m < n)
    ratio = max(config.aspect_ratio, 1 / config.aspect_ratio)
    side = short if config.window_rows == "auto" else min(short, config.window_rows)
    side = max(1, min(side, largest_fitting_rows(short, long, ratio)))
    rows = min(long, window_cols(side, ratio))
    row_starts, col_starts = _adjacent_starts(long, rows), _adjacent_starts(short, side)
    pieces = len(row_starts) * len(col_starts)
    return WindowPlan(
        rows,
        side,
        row_starts,
        col_starts,
        kernel=kernel,
        pieces=pieces,
        transposed=m < n,
    )


def plan_weight(shape: tuple[int, ...], config: FarmsConfig) -> WindowPlan:
    """Plan the windows of a matrix `(m, n)` or a convolution `(m, n, *kernel)`."""
    m, n, *kernel = shape
    return plan_convolution(m, n, math.prod(kernel), config) if kernel else plan_windows(m, n, config)


def _spread_starts(size: int, window: int, count: int) -> tuple[int, ...]:
    """Return evenly spread window starts along one side, by the rule of the released code."""
    if count == 1:
        return (0,)
    step = max(1, (size - window) // (count - 1))
    return tuple(index * step for index in range(min(count, (size - window) // step + 1)))


def _adjacent_starts(size: int, window: int) -> tuple[int, ...]:
    """Return the starts of as many adjacent windows as fit along one side."""
    return tuple(range(0, size - window + 1, window))


def sample_windows(weight: Tensor, config: FarmsConfig) -> Tensor:
    """Cut a weight into windows of one size and aspect ratio.

    FARMS, arXiv 2506.06280, section 3. The windows are a strided view: no memory is copied.

    Args:
        weight: `(m, n)`, any dtype; not modified.
        config: window rows, aspect ratio and windows per dimension.

    Returns:
        `(a, b, r, c)` view of the weight, window (i, j) at its row start i and column start j.

    Raises:
        ValueError: no window of that aspect ratio fits.
    """
    m, n = weight.shape
    return cut_windows(weight, plan_windows(m, n, config))


def cut_windows(weight: Tensor, plan: WindowPlan) -> Tensor:
    """Cut the windows of a plan as a strided view, without a copy.

    Args:
        weight: `(m, n)` or `(m, n, *kernel)`.
        plan: plan for this shape.

    Returns:
        `(a, b, r, c)`; for a convolution `(a, b, kernel, r, c)`, so that the windows of one piece are adjacent.
    """
    if weight.ndim > 2:
        weight = weight.flatten(2).permute(2, 0, 1)
    if plan.transposed:
        weight = weight.mT
    row_step = plan.row_starts[1] if len(plan.row_starts) > 1 else 1
    col_step = plan.col_starts[1] if len(plan.col_starts) > 1 else 1
    windows = weight.unfold(-2, plan.rows, row_step)[..., : len(plan.row_starts), :, :]
    # (..., a, n, r) -> (..., a, b, r, c)
    windows = windows.unfold(-2, plan.cols, col_step)[..., : len(plan.col_starts), :, :]
    return windows if weight.ndim == 2 else windows.movedim(0, 2)
