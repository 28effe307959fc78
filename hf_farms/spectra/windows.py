"""Weight -> windows of one size and aspect ratio (FARMS, arXiv 2506.06280, section 3).

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

# The window size of a model: its typical smaller side over this, at least so many rows, at most half that side.
# 8 x 8 windows of an eighth are disjoint on a square layer. Chosen in BENCHMARKS.md, "Windows" and "Block scores".
SIDES_PER_WINDOW = 8
SMALLEST_AUTO_ROWS = 32
# Windows along each side of a matrix; where fewer fit side by side they overlap, where more fit they are spread out.
WINDOWS_PER_DIM = 8


@dataclass(frozen=True)
class WindowPlan:
    """Which windows are cut from one weight: `rows x cols` each, starting at every pair of the two lists.

    Attributes:
        rows: of a window.
        cols: of a window.
        row_starts: where the windows start along the rows.
        col_starts: where they start along the columns.
        lowered: the rows asked for did not fit.
        kernel: matrices in the weight: places of the kernel of a convolution; 1 for a matrix.
        pieces: windows that are fitted apart: those of a convolution; of a matrix all are pooled, so 1.
        transposed: the windows are cut from the transposed matrices (of a convolution with fewer outputs than inputs).
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
        """Windows in all."""
        return len(self.row_starts) * len(self.col_starts) * self.kernel

    @property
    def side_by_side(self) -> tuple[float, float]:
        """Along the rows and along the columns: how many windows would fit side by side into what they cover."""
        sides = ((self.row_starts, self.rows), (self.col_starts, self.cols))
        down, across = (min(len(starts), (starts[-1] + size) / size) for starts, size in sides)
        return down, across


def window_cols(rows: int, aspect_ratio: float) -> int:
    """C = round(Q r), at least 1."""
    return max(1, round(aspect_ratio * rows))


def largest_fitting_rows(m: int, n: int, aspect_ratio: float) -> int:
    """The largest r with r <= m and round(Q r) <= n; 0 where none fits."""
    # Start just above the answer: rounding can admit at most half a column more than Q r itself.
    rows = min(m, math.floor((n + 0.5) / aspect_ratio) + 1)
    while rows > 0 and window_cols(rows, aspect_ratio) > n:
        rows -= 1
    return rows


def model_window_rows(shapes: Iterable[tuple[int, ...]], aspect_ratio: float = 1.0) -> int:
    """One window size for all layers of a model, so that no finite-size bias enters between them.

    An eighth of the smaller side (the most rows a window may have) of the layers that hold most parameters: their
    median, weighted by parameters, so that neither k and v under grouped-query attention nor a router decide. At
    least 32 rows, at most half of that side.

    Args:
        shapes: `(m, n)` of every layer.
        aspect_ratio: Q = columns / rows of a window.

    Raises:
        ValueError: there are no layers.
    """
    sides = sorted((largest_fitting_rows(m, n, aspect_ratio), m * n) for m, n in shapes)
    if not sides:
        raise ValueError("shapes must be at least one layer, got none.")
    half = sum(size for _, size in sides) / 2
    side = next(
        side for (side, _), total in zip(sides, accumulate(size for _, size in sides), strict=True) if total >= half
    )
    return max(1, side // SIDES_PER_WINDOW, min(SMALLEST_AUTO_ROWS, side // 2))


def plan_windows(m: int, n: int, config: FarmsConfig) -> WindowPlan:
    """Where the windows of one weight lie.

    Rows that do not fit are lowered to the largest r with r <= m and round(Q r) <= n. For Q = 1 that is the clamp of
    the released code, r <= min(m, n). For other Q the two differ, and this one keeps the larger window of the right
    aspect ratio: for Q = 1/4 a weight of 512 x 64 keeps windows of 128 x 32, which fit, where the released code clamps
    them to 64 x 16; for Q > 1 the released clamp can leave fewer than Q r columns.

    Args:
        m: rows of the weight.
        n: columns of the weight.
        config: `window_rows` "auto" means the size for a model of this weight alone; pass the model's as an integer.

    Returns:
        The plan; `lowered` says that the rows asked for did not fit and were reduced.

    Raises:
        ValueError: the aspect ratio fits no window at all into this weight.
    """
    if config.window_rows is None:
        return WindowPlan(m, n, (0,), (0,))
    auto = config.window_rows == "auto"
    wanted = model_window_rows([(m, n)], config.aspect_ratio) if auto else int(config.window_rows)
    rows = min(wanted, largest_fitting_rows(m, n, config.aspect_ratio))
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
        _starts(m, rows, count),
        _starts(n, cols, count),
        lowered=rows < wanted,
    )


def plan_convolution(m: int, n: int, kernel: int, config: FarmsConfig) -> WindowPlan:
    """Where the windows of a convolution lie: the paper's slicing.

    For every place of the kernel there is an `(m, n)` matrix, transposed if need be so that it has more rows than
    columns, and cut along its rows into pieces as wide as the matrix, Q times as long. The pieces lie side by side from
    the first row on; rows that are left over at the end are in none of them. `window_rows` as a number makes the pieces
    smaller where they are larger than that; "auto" leaves them as wide as the layer.

    Args:
        m: output channels.
        n: input channels (of a group).
        kernel: number of places of the kernel.
        config: window rows and aspect ratio; windows per dimension is not used, the pieces lie side by side.
    """
    long, short = max(m, n), min(m, n)
    if config.window_rows is None:
        return WindowPlan(long, short, (0,), (0,), kernel=kernel, transposed=m < n)
    ratio = max(config.aspect_ratio, 1 / config.aspect_ratio)
    side = short if config.window_rows == "auto" else min(short, config.window_rows)
    side = max(1, min(side, largest_fitting_rows(short, long, ratio)))
    rows = min(long, window_cols(side, ratio))
    row_starts, col_starts = _side_by_side(long, rows), _side_by_side(short, side)
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
    """The windows of a matrix `(m, n)` or a convolution `(m, n, *kernel)`."""
    m, n, *kernel = shape
    return plan_convolution(m, n, math.prod(kernel), config) if kernel else plan_windows(m, n, config)


def _starts(size: int, window: int, count: int) -> tuple[int, ...]:
    """Evenly spread window starts along one side, by the released rule."""
    if count == 1:
        return (0,)
    step = max(1, (size - window) // (count - 1))
    return tuple(index * step for index in range(min(count, (size - window) // step + 1)))


def _side_by_side(size: int, window: int) -> tuple[int, ...]:
    """As many windows as fit along one side without overlap or gap."""
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
    """The windows of a plan as a strided view.

    Args:
        weight: `(m, n)` or `(m, n, *kernel)`.
        plan: of this shape.

    Returns:
        `(a, b, r, c)`; of a convolution `(a, b, kernel, r, c)`, so that the windows of one piece follow each other.
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
