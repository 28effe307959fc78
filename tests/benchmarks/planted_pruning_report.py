"""Tables of planted_pruning.py: mean difference of NLL to uniform, with its paired standard error."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from hf_farms.config import ENDS

# Families that confirm what the others chose.
CONFIRMATION = {*range(605, 610), 701}
Key = tuple[str, float, float, str]


def group_of(model: str) -> str:
    """Group of models that a row is averaged over; a model of a group of its own has its error over windows."""
    kind, _, rest = model.partition("-")
    if kind not in ("acting", "long") or not rest.partition("-")[0].isdigit():
        return model
    family, _, state = rest.partition("-")
    half = "confirmation" if int(family) in CONFIRMATION else "development"
    return f"{kind}, {half}" if kind == "acting" else f"long, {state}, {half}"


def differences(rows: Iterable[dict[str, Any]]) -> dict[Key, dict[str, dict[str, list[float]]]]:
    """NLL minus that of uniform at the same sparsity, window by window: (group, ...) -> ends -> model -> windows."""
    rows = list(rows)
    uniform = {(r["model"], r["sparsity"]): r["nll"] for r in rows if r["allocation"] == "uniform"}
    found: dict[Key, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        base = uniform.get((row["model"], row["sparsity"]))
        if row["allocation"] != "uniform" and base is not None:
            key = (group_of(row["model"]), row["sparsity"], row["spread"], row["allocation"])
            found[key][row["ends"]][row["model"]] = [a - b for a, b in zip(row["nll"], base, strict=True)]
    return found


def summary(models: dict[str, list[float]]) -> str:
    """Mean and standard error over models; of a single model over its windows."""
    values = [statistics.fmean(windows) for windows in models.values()]
    if len(values) == 1:
        values = next(iter(models.values()))
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):+.3f} ± {error:.3f}"


def print_tables(rows: Iterable[dict[str, Any]]) -> None:
    """Print one table for each group of models."""
    found = differences(rows)
    order = ["farms", "alpha", "norm", "deranged", "oracle"]
    for group in dict.fromkeys(key[0] for key in sorted(found)):
        cells = {key[1:]: by_ends for key, by_ends in found.items() if key[0] == group}
        counts = {len(models) for by_ends in cells.values() for models in by_ends.values()}
        models = str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        print(f"\n**{group}** (models: {models})\n")
        print(f"| sparsity | spread | allocation | {' | '.join(ENDS)} |\n|{'---|' * (len(ENDS) + 3)}")
        for (sparsity, spread, allocation), by_ends in sorted(
            cells.items(), key=lambda cell: (*cell[0][:2], order.index(cell[0][2]))
        ):
            shown = [summary(by_ends[ends]) if ends in by_ends else "" for ends in ENDS]
            print(f"| {sparsity:g} | {spread:g} | {allocation} | {' | '.join(shown)} |")


__all__ = ["CONFIRMATION", "differences", "group_of", "print_tables", "summary"]
