"""Weight -> windows of one size and aspect ratio (FARMS, arXiv 2506.06280, section 3).

Shapes: m x n weight (out, in), r x c window with c = round(Q r), w windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from hf_farms.config import FarmsConfig

__all__ = ["WindowPlan", "largest_window_rows", "model_window_rows", "plan_windows", "sample_windows"]

# Layers that together hold less than this share of the parameters (a router, a tiny projection) do not get to decide
# the window size of the whole model; they are measured with lowered rows instead.
NEGLIGIBLE_SHARE = 0.01


@dataclass(frozen=True)
class WindowPlan:
    """Which windows are cut from one weight: `rows x cols` each, starting at every pair of the two lists."""

    rows: int
    cols: int
    row_starts: tuple[int, ...]
    col_starts: tuple[int, ...]
    lowered: bool = False

    @property
    def num_windows(self) -> int:
        """Windows in all."""
        return len(self.row_starts) * len(self.col_starts)


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


def largest_window_rows(m: int, n: int, aspect_ratio: float = 1.0) -> int:
    """The largest window of which two fit side by side, so that there is always a standard error.

    A square m x m weight gives m // 2 rows (four windows), one of m x 2m gives m (two windows).

    Args:
        m: rows of the weight.
        n: columns of the weight.
        aspect_ratio: Q = columns / rows of a window.

    Returns:
        Rows, at least 1 (where not even two windows of one row fit, the largest window that fits at all).
    """
    side_by_side = largest_fitting_rows(m, n // 2, aspect_ratio)
    stacked = largest_fitting_rows(m // 2, n, aspect_ratio)
    return max(side_by_side, stacked) or max(1, largest_fitting_rows(m, n, aspect_ratio))


def model_window_rows(shapes: Iterable[tuple[int, int]], aspect_ratio: float = 1.0) -> int:
    """One window size for all layers of a model, so that no finite-size bias enters between them.

    The smallest of the layers' own `largest_window_rows`, after leaving out the smallest layers that together hold
    less than 1% of the parameters. Under grouped-query attention k and v therefore decide, a router does not.

    Args:
        shapes: `(m, n)` of every layer.
        aspect_ratio: Q = columns / rows of a window.

    Raises:
        ValueError: there are no layers.
    """
    sized = sorted((largest_window_rows(m, n, aspect_ratio), m * n) for m, n in shapes)
    if not sized:
        raise ValueError("shapes must be at least one layer, got none.")
    budget = NEGLIGIBLE_SHARE * sum(size for _, size in sized)
    for rows, size in sized:
        budget -= size
        if budget < 0:
            return rows
    return sized[-1][0]


def plan_windows(m: int, n: int, config: FarmsConfig) -> WindowPlan:
    """Where the windows of one weight lie.

    Args:
        m: rows of the weight.
        n: columns of the weight.
        config: `window_rows` "auto" means the largest for this weight; pass the model's own size as an integer.

    Returns:
        The plan; `lowered` says that the rows asked for did not fit and were reduced.

    Raises:
        ValueError: the aspect ratio fits no window at all into this weight.
    """
    if config.window_rows is None:
        return WindowPlan(m, n, (0,), (0,))
    auto = config.window_rows == "auto"
    wanted = largest_window_rows(m, n, config.aspect_ratio) if auto else int(config.window_rows)
    rows = min(wanted, largest_fitting_rows(m, n, config.aspect_ratio))
    if rows < 1:
        raise ValueError(
            f"aspect_ratio must be at most {n} for a weight of {m} x {n}, got {config.aspect_ratio!r}. "
            "Choose a smaller Q or window_rows=None."
        )
    cols = window_cols(rows, config.aspect_ratio)
    per_row, per_col = (m // rows, n // cols) if config.windows_per_dim == "auto" else (config.windows_per_dim,) * 2
    return WindowPlan(rows, cols, _starts(m, rows, per_row), _starts(n, cols, per_col), lowered=rows < wanted)


def _starts(size: int, window: int, count: int) -> tuple[int, ...]:
    """Evenly spread window starts along one side, by the released rule."""
    if count == 1:
        return (0,)
    step = max(1, (size - window) // (count - 1))
    return tuple(index * step for index in range(min(count, (size - window) // step + 1)))


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
    plan = plan_windows(m, n, config)
    row_step = plan.row_starts[1] if len(plan.row_starts) > 1 else 1
    col_step = plan.col_starts[1] if len(plan.col_starts) > 1 else 1
    windows = weight.unfold(0, plan.rows, row_step)[: len(plan.row_starts)]
    return windows.unfold(1, plan.cols, col_step)[:, : len(plan.col_starts)]
