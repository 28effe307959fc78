"""Tables of allocations.py, as BENCHMARKS.md has them."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from allocations_names import GAINS, PAIRS, mask, recovery, shown
from allocations_statistics import Row, closed_gap, compared

# Of a line of a table.
Cells = tuple[Any, ...]

# What two rows that are compared have in common.
SETTING = ("sparsity", "pattern", "method", "refine", "recover", "data", "passes", "written")
# Of a row without a word of it.
SEEDS = 5
# Perplexities are of the first device that has the seed; differences are of one device where both rows have one.
DEVICES = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "cpu")
# The allocation that others are compared with.
BASE = "uniform"
# Recoveries close the gap between this allocation, pruned by SparseGPT, and the dense model.
REFERENCE = "auto"


def read_rows(folder: Path) -> list[Row]:
    """Read the rows of a folder, compressed or not."""
    path = folder / "rows.jsonl"
    text = path.read_bytes() if path.exists() else gzip.decompress(path.with_suffix(".jsonl.gz").read_bytes())
    return [json.loads(line) for line in text.splitlines()]


def print_tables(folder: Path) -> None:
    """Print the tables of a folder."""
    dense, *rows = sorted(read_rows(folder), key=lambda row: row["name"] != "dense")
    # In the order of devices, so that the first row of a seed counts.
    rows.sort(key=lambda row: (row["sparsity"], _place(row["device"])))
    print(f"Dense: perplexity {perplexity([dense])}, {len(dense['nll'])} windows.")
    for table in (plain(rows), masks(rows), recoveries(rows, dense), pairs(rows), gains(rows)):
        heading, *lines = table
        if lines:
            used = [any(line[column] != "" for line in lines) for column in range(len(heading))]
            print("", _line(heading, used), "|" + "---|" * sum(used), *(_line(line, used) for line in lines), sep="\n")


def _place(device: str) -> tuple[int, str]:
    """Return the place of a device in the order; others come last."""
    return (DEVICES.index(device) if device in DEVICES else len(DEVICES)), device


def setting(row: Row) -> tuple[Any, ...]:
    """Return what a row has in common with those that it is compared with."""
    return tuple(row[name] for name in SETTING)


def _settings(rows: Iterable[Row], *, recovered: bool) -> Iterator[dict[str, list[Row]]]:
    """Yield the rows of each setting by allocation; settings and allocations by their NLL, the best first."""
    by_setting: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if (row["recover"] != "none") == recovered:
            by_setting.setdefault(setting(row), {}).setdefault(row["allocation"], []).append(row)
    groups = [_ordered(group) for group in by_setting.values()]
    yield from sorted(groups, key=lambda group: (_first(group)["sparsity"], _loss(next(iter(group.values())))))


def _ordered(group: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """Return the allocations by their difference to the base, where there is one: they may have other seeds."""
    base = group.get(BASE, [])

    def key(item: tuple[str, list[Row]]) -> float:
        found = compared(item[1], base)
        return found.mean if found else _loss(item[1]) - (_loss(base) if base else 0.0)

    return dict(sorted(group.items(), key=key))


def _first(group: Mapping[str, Sequence[Row]]) -> Row:
    return next(iter(group.values()))[0]


def _by_seed(rows: Iterable[Row]) -> list[Row]:
    """Return the first row of each seed."""
    found: dict[int, Row] = {}
    for row in rows:
        found.setdefault(row["seed"], row)
    return list(found.values())


def _loss(rows: Sequence[Row]) -> float:
    return float(np.mean([row["nll"] for row in _by_seed(rows)]))


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
            _, seeds, *values = _measured(name, own, parts[sparsity]) if own else ("", SEEDS, "", "", "")
            cells += [f"{values[0]} ({seeds} seed{'s' * (seeds > 1)})" if seeds != SEEDS else values[0], *values[1:]]
        yield shown(name), *cells


def masks(rows: Sequence[Row]) -> Iterator[Cells]:
    """Yield the table of other prunes without recovery."""
    yield "sparsity", "method", "allocation", "seeds", "perplexity", "NLL − uniform", "KL"
    for by_name in _settings([row for row in rows if not _is_plain(row, "wanda")], recovered=False):
        for name, own in by_name.items():
            yield f"{own[0]['sparsity']:.0%}", mask(own[0]), *_measured(name, own, by_name)


def recoveries(rows: Sequence[Row], dense: Row) -> Iterator[Cells]:
    """Yield the table of recoveries."""
    yield "sparsity", "recovery", "allocation", "seeds", "perplexity", "NLL − uniform", "KL", "gap closed"
    for by_name in _settings(rows, recovered=True):
        for name, own in by_name.items():
            gap = closed_gap(own, [row for row in rows if _is_reference(row, own[0])], dense)
            yield f"{own[0]['sparsity']:.0%}", recovery(own[0]), *_measured(name, own, by_name), gap or ""


def pairs(rows: Sequence[Row]) -> Iterator[Cells]:
    """Yield the table of differences of two allocations of one setting."""
    yield "sparsity", "method", "difference", "seeds", "NLL"
    for recovered in (False, True):
        for by_name in _settings(rows, recovered=recovered):
            for one, other in PAIRS:
                found = compared(by_name.get(one, []), by_name.get(other, []))
                # Two allocations may have the same plan.
                if found and found.error:
                    first = by_name[one][0]
                    method = recovery(first) if recovered else mask(first)
                    names = f"{shown(one)} − {shown(other)}"
                    yield f"{first['sparsity']:.0%}", method, names, _common(by_name[one], by_name[other]), found


def gains(rows: Sequence[Row]) -> Iterator[Cells]:
    """Yield the table of differences of two settings of one allocation."""
    yield "sparsity", "pattern", "allocation", "difference", "seeds", "NLL", "KL"
    for title, one, other in GAINS:
        # The setting of both but for the options that differ.
        shared = [name for name in (*SETTING, "allocation") if name not in one]
        parts: list[dict[tuple[Any, ...], list[Row]]] = [{}, {}]
        for part, options in zip(parts, (one, other), strict=True):
            for row in rows:
                if all(row[name] == value for name, value in options.items()):
                    part.setdefault(tuple(row[name] for name in shared), []).append(row)
        for key, own in parts[0].items():
            base = parts[1].get(key, [])
            if found := compared(own, base):
                first = own[0]
                pattern = "" if first["pattern"] == "unstructured" else first["pattern"]
                names = f"{first['sparsity']:.0%}", pattern, shown(first["allocation"]), title
                yield *names, _common(own, base), found, compared(own, base, "kl")


def _measured(name: str, own: Sequence[Row], by_name: Mapping[str, Sequence[Row]]) -> tuple[Any, ...]:
    """Return the cells that all tables have."""
    difference = compared(own, by_name.get(BASE, ())) if name != BASE else None
    kl = np.mean([row["kl"] for row in _by_seed(own)])
    return shown(name), len(_by_seed(own)), perplexity(own), difference or "", f"{kl:.3f}"


def _common(own: Iterable[Row], base: Iterable[Row]) -> int:
    return len({row["seed"] for row in own} & {row["seed"] for row in base})


def perplexity(rows: Sequence[Row]) -> str:
    """Return the perplexity over seeds and windows."""
    return f"{math.exp(_loss(rows)):.2f}"


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
