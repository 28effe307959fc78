"""Tables of allocations.py: means over calibration seeds and windows, and errors of both."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]
Row = Mapping[str, Any]

# What the rows of a table have in common.
TABLE = ("sparsity", "pattern", "method", "refine", "recover", "data", "passes", "written")
# The row of a table that others are compared with.
BASE = "uniform"


class Difference(NamedTuple):
    """A mean difference with its standard error, and the quantile of t that a significant one exceeds."""

    mean: float
    error: float
    quantile: float

    def __str__(self) -> str:
        digits = 4 if 0 < self.error < 0.001 else 3
        text = f"{self.mean:+.{digits}f} ± {self.error:.{digits}f}".replace("-", "−")
        return f"**{text}**" if abs(self.mean) > self.quantile * self.error else text


def crossed(values: Floats) -> Difference:
    """Mean of `(seeds, windows)` where both are drawn at random, by analysis of variance.

    The variance of the mean is (MS of seeds + MS of windows - MS of the rest) / (seeds x windows), with the degrees of
    freedom of Satterthwaite. One seed: windows only.
    """
    seeds, windows = values.shape
    mean = float(values.mean())
    rows, columns = values.mean(1, keepdims=True) - mean, values.mean(0, keepdims=True) - mean
    by_window = seeds * float(np.square(columns).sum()) / (windows - 1)
    if seeds == 1:
        return Difference(mean, math.sqrt(by_window / windows), float(student.ppf(0.975, windows - 1)))
    by_seed = windows * float(np.square(rows).sum()) / (seeds - 1)
    rest = float(np.square(values - mean - rows - columns).sum()) / ((seeds - 1) * (windows - 1))
    # The estimate may fall below that of windows or of seeds alone, which bound it.
    variance = max(by_seed + by_window - rest, by_seed, by_window)
    if variance == 0:
        return Difference(mean, 0.0, 0.0)
    spread = by_seed**2 / (seeds - 1) + by_window**2 / (windows - 1) + rest**2 / ((seeds - 1) * (windows - 1))
    freedom = max(1.0, variance**2 / spread)
    return Difference(mean, math.sqrt(variance / (seeds * windows)), float(student.ppf(0.975, freedom)))


def compared(rows: Iterable[Row], base: Iterable[Row], key: str = "nll") -> Difference | None:
    """Difference of rows to those of the same seed; None without a common seed."""
    one, other = ({row["seed"]: row[key] for row in part} for part in (rows, base))
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    return crossed(np.array([one[seed] for seed in seeds]) - np.array([other[seed] for seed in seeds]))


def closed_gap(rows: Iterable[Row], base: Iterable[Row], dense: Row) -> tuple[float, float] | None:
    """Share of the NLL gap between base and dense that rows close, and its error over seeds and windows.

    Args:
        rows: of one arm.
        base: of another arm; rows of the same seed are compared.
        dense: of the dense model.
    """
    one, other = ({row["seed"]: np.array(row["nll"]) for row in part} for part in (rows, base))
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    gap = np.array([other[seed] for seed in seeds]) - np.array(dense["nll"])
    closed = np.array([other[seed] - one[seed] for seed in seeds])
    share = float(closed.mean() / gap.mean())
    # The ratio of two means, to first order.
    return share, crossed((closed - share * gap) / gap.mean()).error


def _print_gaps(rows: Sequence[Row], dense: Row) -> None:
    print("\n| recovered | of the gap of | closed |\n|---|---|---|")
    for setting in dict.fromkeys((_setting(row), row["allocation"]) for row in rows if row["recover"] != "none"):
        own = [row for row in rows if (_setting(row), row["allocation"]) == setting]
        for name in ("auto", "farms"):
            base = [row for row in rows if row["allocation"] == name and _is_plain_sparsegpt(row, own[0])]
            if found := closed_gap(own, base, dense):
                print(f"| {_title(own[0])}, {setting[1]} | sparsegpt, {name} | {found[0]:.0%} ± {found[1]:.0%} |")


def _is_plain_sparsegpt(row: Row, other: Row) -> bool:
    same = all(row[name] == other[name] for name in ("sparsity", "pattern"))
    return same and (row["method"], row["refine"], row["recover"]) == ("sparsegpt", "none", "none")


def read_rows(folder: Path) -> list[Row]:
    """Read the rows of a folder, compressed or not."""
    path = folder / "rows.jsonl"
    text = path.read_bytes() if path.exists() else gzip.decompress(path.with_suffix(".jsonl.gz").read_bytes())
    # The first rows, of three passes and no continuations, do not name them.
    rows: list[Row] = [{"passes": 3, "written": 0, **json.loads(line)} for line in text.splitlines()]
    # The recovery of an earlier version.
    return [
        row | {"allocation": f"{row['allocation']} split"} if row["name"].endswith("split") else row for row in rows
    ]


def print_tables(folder: Path, others: Sequence[Path] = ()) -> None:
    """Print one table for each setting, and comparisons of two allocations.

    Args:
        folder: its settings have tables.
        others: folders with more rows of these settings, and of those whose gaps are closed; of a name and seed the
            first counts.
    """
    rows = read_rows(folder)
    dense = next(row for row in rows if row["name"] == "dense")
    rows = [row for row in rows if row["name"] != "dense"]
    print(f"Dense: perplexity {math.exp(np.mean(dense['nll'])):.2f}, {len(dense['nll'])} windows.")
    settings = dict.fromkeys(_setting(row) for row in rows)
    for other in others:
        known = {(row["name"], row["seed"]) for row in rows}
        more = [row for row in read_rows(other) if row["name"] != "dense"]
        rows += [row for row in more if (row["name"], row["seed"]) not in known]
    for setting in settings:
        _print_table([row for row in rows if _setting(row) == setting])
    shown = [row for row in rows if row["recover"] == "none" or _setting(row) in settings]
    _print_text_gains(shown)
    _print_training_gains(rows)
    _print_gaps(shown, dense)


def _print_text_gains(rows: Sequence[Row]) -> None:
    """Print the gain of two passes with continuations over six passes without, for each sparsity and allocation."""
    shared = ("sparsity", "allocation", "pattern", "method", "refine", "recover", "data")
    print("\n| sparsity | allocation | 2 passes with continuations minus 6 passes: NLL | KL |\n|---|---|---|---|")
    for key in dict.fromkeys(tuple(row[name] for name in shared) for row in rows if row["written"]):
        own = [row for row in rows if tuple(row[name] for name in shared) == key]
        written = [row for row in own if row["written"] and row["passes"] == 2]
        read = [row for row in own if not row["written"] and row["passes"] == 6]
        if found := compared(written, read):
            print(f"| {key[0]:.0%} | {key[1]} | {found} | {compared(written, read, 'kl')} |")


def _print_training_gains(rows: Sequence[Row]) -> None:
    """Print the gain of `distill` over `submodule`, both with continuations, for each sparsity and allocation."""
    shared = ("sparsity", "allocation", "pattern", "method", "refine", "data", "written")
    print("\n| sparsity | allocation | distill minus submodule, seeds | NLL | KL |\n|---|---|---|---|---|")
    trained = [row for row in rows if row["recover"] == "distill" and row["written"]]
    for key in dict.fromkeys(tuple(row[name] for name in shared) for row in trained):
        own = [row for row in rows if tuple(row[name] for name in shared) == key]
        distilled = [row for row in own if row["recover"] == "distill"]
        fitted = [row for row in own if row["recover"] == "submodule" and row["passes"] == 2]
        if found := compared(distilled, fitted):
            seeds = sorted({row["seed"] for row in distilled} & {row["seed"] for row in fitted})
            cells = (f"{key[0]:.0%}", key[1], ", ".join(map(str, seeds)), found, compared(distilled, fitted, "kl"))
            print(f"| {' | '.join(map(str, cells))} |")


def _setting(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in TABLE)


def _title(row: Row) -> str:
    parts = [f"{row['sparsity']:.0%}", row["pattern"] if row["pattern"] != "unstructured" else "", row["method"]]
    parts += [row["refine"] if row["refine"] != "none" else "", row["recover"] if row["recover"] != "none" else ""]
    parts += [
        f"{row['data']} x data" if row["data"] > 1 else "",
        f"{row['passes']} passes" if row["passes"] != 3 else "",
        f"{row['written']} continuations each" if row["written"] else "",
    ]
    return ", ".join(part for part in parts if part)


def _print_table(rows: Sequence[Row]) -> None:
    print(f"\n{_title(rows[0])}\n")
    print("| allocation | seeds | perplexity | NLL − uniform | KL | blocks | s |\n|---|---|---|---|---|---|---|")
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["allocation"], []).append(row)
    for name, own in sorted(by_name.items(), key=lambda item: np.mean([row["nll"] for row in item[1]])):
        difference = compared(own, by_name.get(BASE, ())) if name != BASE else None
        blocks = [value for row in own for value in row["blocks"]]
        cells = [name, str(len(own)), f"{math.exp(np.mean([row['nll'] for row in own])):.2f}", str(difference or "")]
        cells += [f"{np.mean([row['kl'] for row in own]):.3f}", f"{min(blocks):.3f} to {max(blocks):.3f}"]
        print("| " + " | ".join([*cells, f"{np.mean([row['seconds'] for row in own]):.0f}"]) + " |")
    for name, other in PAIRS:
        if name in by_name and other in by_name and (pair := compared(by_name[name], by_name[other])):
            print(f"\n{name} minus {other}: {pair}")


# Compared beside uniform, where a table has both.
PAIRS = (
    ("auto", "tuned ramp"),
    ("auto", "random"),
    ("auto", "wide ramp"),
    ("auto", "sensitivity"),
    ("sensitivity", "tuned ramp"),
    ("reversed", "tuned ramp"),
    ("auto recovered", "farms"),
    ("auto recovered", "auto half"),
    ("farms", "sorted"),
    ("farms", "shuffled"),
    ("farms", "reversed"),
    ("farms", "first"),
    ("tuned ramp", "ramp"),
    ("tuned owl", "owl"),
    ("tuned dlp", "dlp"),
    ("random", "tuned ramp"),
    ("farms", "tuned ramp"),
)
