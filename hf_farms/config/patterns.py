"""Patterns of zeros: their names, and the sparsities and allocations that they allow."""

from __future__ import annotations

import math
import re

from hf_farms.config.checks import check
from hf_farms.registries import ALLOCATIONS

__all__ = ["UNSTRUCTURED", "check_pattern", "group_of"]

UNSTRUCTURED = "unstructured"
PATTERN = re.compile(rf"{UNSTRUCTURED}|(N|[1-9]\d*):[1-9]\d*")


def group_of(pattern: str) -> tuple[int | None, int] | None:
    """Return N (None: each block has its own) and M of a pattern N:M; None for unstructured zeros."""
    if pattern == UNSTRUCTURED:
        return None
    kept, size = pattern.split(":")
    return None if kept == "N" else int(kept), int(size)


def check_pattern(pattern: object, *, sparsity: float, allocation: str) -> None:
    """Refuse a pattern that does not exist, and a sparsity or an allocation that it does not allow.

    Args:
        pattern: "unstructured", "N:M" with two numbers, or such as "N:8".
        sparsity: a valid one.
        allocation: name of a valid one.
    """
    ok = isinstance(pattern, str) and PATTERN.fullmatch(pattern) is not None
    check(ok, "pattern", "'unstructured', 'N:M' with two numbers such as '2:4', or such as 'N:8'", pattern)
    assert isinstance(pattern, str)
    if (group := group_of(pattern)) is None:
        return
    kept, size = group
    if kept is None:
        most = (size - 1) / size
        check(size > 1, "pattern", "groups of at least 2 weights", pattern)
        check(
            sparsity <= most,
            "sparsity",
            f"at most {most:.4g} for pattern {pattern!r}",
            sparsity,
            "Lower it, use larger groups, or say `pattern='unstructured'`.",
        )
        return
    check(kept < size, "pattern", "N:M with N below M", pattern, "N of every M weights stay.")
    right = (size - kept) / size
    check(
        math.isclose(sparsity, right, abs_tol=5e-5),
        "sparsity",
        f"{right:.4g} for pattern {pattern!r}",
        sparsity,
        f"{kept} of every {size} weights stay.",
    )
    check(
        ALLOCATIONS[allocation].even,
        "allocation",
        f"'uniform' for pattern {pattern!r}",
        allocation,
        f"Say `allocation='uniform'`, or `pattern='N:{size}'`, under which blocks may differ.",
    )
