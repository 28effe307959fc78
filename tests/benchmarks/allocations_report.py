"""Tables of allocations.py, as BENCHMARKS.md has them."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from allocations_statistics import closed_gap, compared

Row = Mapping[str, Any]
# Of a line of a table.
Cells = tuple[Any, ...]

# What two rows that are compared have in common.
SETTING = ("sparsity", "pattern", "method", "refine", "recover", "data", "passes", "written")
# The allocation that others are compared with.
BASE = "uniform"
# Recoveries close the gap between this allocation, pruned by SparseGPT, and the dense model.
REFERENCE = "auto"
NAMES = {
    "first": "first block of `farms`, others alike",
    "sorted": "`farms`, sorted by depth",
    "reversed": "`farms`, reversed",
    "shuffled": "`farms`, shuffled",
    "wide farms": "`farms`, spread 0.3",
    "wide ramp": "`ramp`, spread 0.3",
    "auto recovered": "`auto`, plans recovered before the choice",
    "auto half": "halfway from `uniform` to `auto`",
    "auto quarter": "a quarter of the way from `uniform` to `auto`",
    "uniform split": "`uniform`, blocks fitted to the passages alone",
}
METHODS = {"wanda": "Wanda", "sparsegpt": "SparseGPT", "magnitude": "magnitude"}
# Compared beside uniform, where a setting has both.
PAIRS = (
    ("auto", "tuned ramp"),
    ("auto", "wide ramp"),
    ("auto", "sensitivity"),
    ("auto", "random"),
    ("sensitivity", "tuned ramp"),
    ("farms", "tuned ramp"),
    ("farms", "sorted"),
    ("farms", "shuffled"),
    ("farms", "reversed"),
    ("farms", "first"),
    ("reversed", "tuned ramp"),
    ("tuned owl", "owl"),
    ("tuned dlp", "dlp"),
    ("auto recovered", "farms"),
    ("auto recovered", "auto half"),
)


def read_rows(folder: Path) -> list[Row]:
    """Read the rows of a folder, compressed or not."""
    path = folder / "rows.jsonl"
    text = path.read_bytes() if path.exists() else gzip.decompress(path.with_suffix(".jsonl.gz").read_bytes())
    return [json.loads(line) for line in text.splitlines()]


def print_tables(folder: Path) -> None:
    """Print the tables of a folder."""
    dense, *rows = sorted(read_rows(folder), key=lambda row: row["name"] != "dense")
    rows = sorted(one_device(rows), key=lambda row: row["sparsity"])
    print(f"Dense: perplexity {perplexity([dense])}, {len(dense['nll'])} windows.")
    for table in (plain(rows), masks(rows), recoveries(rows, dense), pairs(rows), gains(rows)):
        heading, *lines = table
        if lines:
            used = [any(line[column] != "" for line in lines) for column in range(len(heading))]
            print("", _line(heading, used), "|" + "---|" * sum(used), *(_line(line, used) for line in lines), sep="\n")


def one_device(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each name and seed: that of the device with most rows of the setting."""
    rows = list(rows)
    counts = Counter((setting(row), row["device"]) for row in rows)
    ordered = sorted(rows, key=lambda row: (-counts[setting(row), row["device"]], row["device"]))
    kept: dict[tuple[Any, ...], Row] = {}
    for row in ordered:
        kept.setdefault((setting(row), row["allocation"], row["seed"]), row)
    return list(kept.values())


def setting(row: Row) -> tuple[Any, ...]:
    """Return what a row has in common with those that it is compared with."""
    return tuple(row[name] for name in SETTING)


def _settings(rows: Iterable[Row], *, recovered: bool) -> Iterator[dict[str, list[Row]]]:
    """Yield the rows of each setting by allocation; settings and allocations by their NLL, the best first."""
    by_setting: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if (row["recover"] != "none") == recovered:
            by_setting.setdefault(setting(row), {}).setdefault(row["allocation"], []).append(row)
    groups = [dict(sorted(group.items(), key=lambda item: _loss(item[1]))) for group in by_setting.values()]
    yield from sorted(groups, key=lambda group: (_first(group)["sparsity"], _loss(next(iter(group.values())))))


def _first(group: Mapping[str, Sequence[Row]]) -> Row:
    return next(iter(group.values()))[0]


def _loss(rows: Sequence[Row]) -> float:
    return float(np.mean([row["nll"] for row in rows]))


def plain(rows: Sequence[Row]) -> Iterator[Cells]:
    """Yield the table of Wanda alone: a line for each allocation, with all sparsities."""
    rows = [row for row in rows if _is_plain(row, "wanda")]
    sparsities = sorted({row["sparsity"] for row in rows})
    parts = {_first(by_name)["sparsity"]: by_name for by_name in _settings(rows, recovered=False)}
    columns = [name for sparsity in sparsities for name in (f"{sparsity:.0%}", "NLL − uniform", "KL")]
    yield "allocation", *columns
    # In the order of those at 50%.
    for name in dict.fromkeys(name for s in sorted(parts, key=lambda s: s != 0.5) for name in parts[s]):
        cells: list[Any] = []
        for sparsity in sparsities:
            own = parts[sparsity].get(name)
            _, seeds, *values = _measured(name, own, parts[sparsity]) if own else ("", 5, "", "", "")
            cells += [f"{values[0]} ({seeds} seeds)" if seeds != 5 else values[0], *values[1:]]
        yield shown(name), *cells


def masks(rows: Sequence[Row]) -> Iterator[Cells]:
    """Yield the table of other prunes without recovery."""
    yield "sparsity", "method", "allocation", "seeds", "perplexity", "NLL − uniform", "KL"
    for by_name in _settings([row for row in rows if not _is_plain(row, "wanda")], recovered=False):
        for name, own in by_name.items():
            yield f"{own[0]['sparsity']:.0%}", mask(own[0]), *_measured(name, own, by_name)


def recoveries(rows: Sequence[Row], dense: Row) -> Iterator[Cells]:
    """Yield the table of recoveries; seconds are the fewest of a CPU, as other work ran beside most rows."""
    yield "sparsity", "recovery", "allocation", "seeds", "perplexity", "NLL − uniform", "KL", "gap closed", "CPU s"
    for by_name in _settings(rows, recovered=True):
        for name, own in by_name.items():
            first = own[0]
            reference = [row for row in rows if _is_reference(row, first)]
            gap = closed_gap(own, reference, dense)
            closed = f"{gap[0]:.0%} ± {gap[1]:.0%}" if gap else ""
            seconds = [row["seconds"] for row in own if row["device"] == "cpu"]
            cells = (*_measured(name, own, by_name), closed, f"{min(seconds):,.0f}" if seconds else "")
            yield f"{first['sparsity']:.0%}", recovery(first), *cells


def pairs(rows: Sequence[Row]) -> Iterator[Cells]:
    """Yield the table of differences of two allocations of one setting."""
    yield "sparsity", "method", "difference", "seeds", "NLL"
    for recovered in (False, True):
        for by_name in _settings(rows, recovered=recovered):
            for one, other in PAIRS:
                if one in by_name and other in by_name and (found := compared(by_name[one], by_name[other])):
                    first = by_name[one][0]
                    method = recovery(first) if recovered else mask(first)
                    names = f"{shown(one)} − {shown(other)}"
                    yield f"{first['sparsity']:.0%}", method, names, _common(by_name[one], by_name[other]), found


def gains(rows: Sequence[Row]) -> Iterator[Cells]:
    """Yield the gains of text and of training: of continuations over passes, and of `distill` over `submodule`."""
    yield "sparsity", "allocation", "difference", "seeds", "NLL", "KL"
    written = [row for row in rows if row["recover"] == "submodule" and row["written"] and row["passes"] == 2]
    read = [row for row in rows if row["recover"] == "submodule" and not row["written"] and row["passes"] == 6]
    trained = [row for row in rows if row["recover"] == "distill" and row["written"]]
    shared = ("sparsity", "allocation", "pattern", "method", "refine", "data")
    yield from _differences("continuations − six passes", written, read, shared)
    yield from _differences("`distill` − `submodule`", trained, written, (*shared, "written"))


def _differences(title: str, ones: Sequence[Row], others: Sequence[Row], shared: Sequence[str]) -> Iterator[Cells]:
    for key in dict.fromkeys(tuple(row[name] for name in shared) for row in ones):
        own, base = ([row for row in part if tuple(row[name] for name in shared) == key] for part in (ones, others))
        if found := compared(own, base):
            yield f"{key[0]:.0%}", shown(key[1]), title, _common(own, base), found, compared(own, base, "kl")


def _measured(name: str, own: Sequence[Row], by_name: Mapping[str, Sequence[Row]]) -> tuple[Any, ...]:
    """Return the cells that all tables have."""
    difference = compared(own, by_name.get(BASE, ())) if name != BASE else None
    return shown(name), len(own), perplexity(own), difference or "", f"{np.mean([row['kl'] for row in own]):.3f}"


def _common(own: Iterable[Row], base: Iterable[Row]) -> int:
    return len({row["seed"] for row in own} & {row["seed"] for row in base})


def perplexity(rows: Sequence[Row]) -> str:
    """Return the perplexity over seeds and windows."""
    return f"{math.exp(_loss(rows)):.2f}"


def shown(allocation: str) -> str:
    """Return the name of an allocation in a table."""
    tuned = allocation.removeprefix("tuned ")
    return NAMES.get(allocation, f"`{tuned}`, tuned" if tuned != allocation else f"`{allocation}`")


def mask(row: Row) -> str:
    """Return the name of the masks of a row."""
    pattern = f" {row['pattern']}" if row["pattern"] != "unstructured" else ""
    return f"{METHODS[row['method']]}{pattern}{' + swaps' if row['refine'] != 'none' else ''}"


def recovery(row: Row) -> str:
    """Return the name of the masks and the recovery of a row."""
    name = f"`{row['recover']}`" if row["refine"] == "none" else f"swaps + `{row['recover']}`"
    # The default of the training is not that of the fit.
    passes = "" if row["recover"] == "distill" else f", {row['passes']} pass{'es' if row['passes'] > 1 else ''}"
    sequences = 32 * row["data"]
    written = f" and {sequences * row['written']} written" if row["written"] else ""
    return f"{name}{passes}, {sequences} sequences{written}"


def _is_reference(row: Row, recovered: Row) -> bool:
    same = all(row[name] == recovered[name] for name in ("sparsity", "pattern"))
    return same and row["allocation"] == REFERENCE and _is_plain(row, "sparsegpt")


def _is_plain(row: Row, method: str) -> bool:
    """Whether a row is of a method alone."""
    values = (row["method"], row["pattern"], row["refine"], row["recover"])
    return values == (method, "unstructured", "none", "none")


def _line(cells: Sequence[Any], used: Iterable[bool]) -> str:
    """Return a line of a table, without the columns that are empty in all lines."""
    return f"| {' | '.join(map(str, compress(cells, used)))} |"
