"""How often does a block of a healthy model stand out, and how often a planted one?

    python tests/benchmarks/planted_alarms.py FOLDER --cache alarms.jsonl
    python tests/benchmarks/planted_alarms.py FOLDER --cache alarms.jsonl --confirm
    python tests/benchmarks/planted_alarms.py --null

FOLDER is that of planted.py. The healthy spread of `hf_farms.reports.standing_out` is fitted on the healthy models of 8
blocks (groups "healthy", "development" and "test"): it must exceed the excess of each of them, so that no block stands
out, however close together the other blocks are. One more model of this kind then has a false alarm with a probability
of at most 1 / (models + 1). `--confirm` counts the false alarms among the models of the group "other" (6 or 10 blocks,
other rates and decays), which were not looked at before the procedure was final, and among the healthy models whose
blocks have different widths. `--null` simulates the thresholds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import planted_jobs
import torch
from planted_conditions import CONDITIONS

from hf_farms.config import FarmsConfig
from hf_farms.reports import BlockSpectrum
from hf_farms.reports.standing_out import (
    HEALTHY_SPREAD,
    center_and_spread,
    find_standing_out,
    largest_normal,
    studentized,
    threshold,
)
from hf_farms.spectra.analysis import analyze

FITTED = ("healthy", "development", "test")
CONFIRMED = ("other", "widths")
# A spread against which that of healthy models is nothing.
LARGE = 1000.0


@dataclass(frozen=True, kw_only=True)
class Alphas:
    """Alphas and standard errors of the blocks of one model; `planted` is position -> condition."""

    name: str
    group: str
    planted: dict[int, str]
    alphas: list[float]
    errors: list[float]

    @property
    def is_healthy(self) -> bool:
        return not self.planted

    @property
    def outliers(self) -> frozenset[int]:
        """Blocks that stand out."""
        blocks = [
            BlockSpectrum(index=i, name=f"model.layers.{i}", alpha=alpha, alpha_stderr=error, layers=())
            for i, (alpha, error) in enumerate(zip(self.alphas, self.errors, strict=True))
        ]
        return find_standing_out(blocks, FarmsConfig()).indices

    @property
    def excess(self) -> float:
        """Distance of the highest inner block from the others, by the largest of so many normal values."""
        inner = self.alphas[1:-1]
        return (max(inner) - center_and_spread(inner)[0]) / largest_normal(len(inner))


def measure(folder: Path, cache: Path, *, confirm: bool) -> list[Alphas]:
    """Measure the finished models that the cache lacks, about 0.3 s each; return all of them."""
    models = {row["name"]: row for row in map(json.loads, cache.read_text().splitlines())} if cache.exists() else {}
    for name, row in planted_jobs.trained_rows(folder).items():
        if name not in models and (confirm or row["group"] not in CONFIRMED):
            models[name] = _measured(folder, row)
            planted_jobs.append(cache, models[name])
    parsed = [Alphas(**(row | {"planted": {int(i): c for i, c in row["planted"].items()}})) for row in models.values()]
    return [model for model in parsed if confirm or model.group not in CONFIRMED]


def _measured(folder: Path, row: dict[str, object]) -> dict[str, object]:
    plan = planted_jobs.plan_of(row)
    blocks = analyze(planted_jobs.load(folder, plan)).blocks
    alphas, errors = [block.alpha for block in blocks], [block.alpha_stderr for block in blocks]
    return {"name": plan.name, "group": plan.group, "planted": plan.planted, "alphas": alphas, "errors": errors}


def print_alarms(title: str, models: Iterable[Alphas]) -> None:
    """Print the share of healthy models with an alarm and its exact bounds."""
    healthy = [model for model in models if model.is_healthy]
    alarms = [model for model in healthy if model.outliers]
    if not healthy:
        print(f"{title}: no models")
        return
    low, high = interval(len(alarms), len(healthy), 0.025)
    upper = interval(len(alarms), len(healthy), 0.05)[1]
    print(
        f"{title}: {len(alarms)} of {len(healthy)} models with a false alarm ({len(alarms) / len(healthy):.1%}; 95% "
        f"interval {low:.1%} to {high:.1%}, one-sided 95% bound {upper:.1%})"
    )
    for model in alarms:
        print(f"  {model.name}: blocks {sorted(model.outliers)}, alphas {[round(alpha, 3) for alpha in model.alphas]}")


def interval(count: int, number: int, tail: float) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) bounds of a share, each missed with at most the probability `tail`."""
    low = _root(lambda p: 1 - _at_most(count - 1, number, p) < tail) if count else 0.0
    high = _root(lambda p: _at_most(count, number, p) > tail) if count < number else 1.0
    return low, high


def _at_most(count: int, number: int, p: float) -> float:
    return math.fsum(math.comb(number, k) * p**k * (1 - p) ** (number - k) for k in range(count + 1))


def _root(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low


def print_power(models: Iterable[Alphas]) -> None:
    """Print the share of planted blocks that stand out, by condition; first and last blocks are not judged."""
    inner, ends = defaultdict(list), defaultdict(int)
    others = []
    for model in models:
        for index, condition in model.planted.items():
            if 0 < index < len(model.alphas) - 1:
                inner[condition].append(index in model.outliers)
            else:
                ends[condition] += 1
        if model.planted:
            others.append(bool(model.outliers - set(model.planted)))
    print("condition | stand out | not judged (first or last)")
    for condition in CONDITIONS:
        flags = inner[condition]
        print(f"{condition} | {sum(flags)} of {len(flags)} | {ends[condition]}")
    print(f"models with planted blocks in which another block stands out: {sum(others)} of {len(others)}")


def print_null(counts: Iterable[int], draws: int) -> None:
    """Print the quantiles of the largest residual of normal alphas by number of inner blocks."""
    draw = random.Random(0)
    print("inner blocks | threshold in use | 95% quantile | share above the threshold")
    for count in counts:
        errors = [0.0] * count
        largest = sorted(max(studentized([draw.gauss(0, LARGE) for _ in range(count)], errors)) for _ in range(draws))
        above = sum(value > threshold(count) for value in largest) / draws
        print(f"{count} | {threshold(count):.2f} | {largest[int(0.95 * draws)]:.2f} | {above:.2%}")


def report(models: list[Alphas], *, confirm: bool) -> None:
    """Print the fit, the false alarms and the power."""
    fitted = [model for model in models if model.group in FITTED]
    excesses = sorted(((model.excess, model.name) for model in fitted if model.is_healthy), reverse=True)
    if excesses:
        values = ", ".join(f"{value:.4f} {name}" for value, name in excesses[:5])
        print(f"healthy spread: {HEALTHY_SPREAD} in use; the largest of {len(excesses)} models: {values}")
    print_alarms("fitted", fitted)
    print_power([model for model in models if model.group != "widths"])
    for model in models:
        if model.group == "long":
            print(f"{model.name}: planted {sorted(model.planted)}, standing out {sorted(model.outliers)}")
    if confirm:
        for group in CONFIRMED:
            print_alarms(group, [model for model in models if model.group == group])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cache", type=Path, help="JSON lines with the alphas; by default FOLDER/alarms.jsonl")
    parser.add_argument("--confirm", action="store_true", help="also the models that nothing was fitted on")
    parser.add_argument("--null", action="store_true", help="simulate the thresholds instead")
    options = parser.parse_args()
    if options.null:
        print_null([*range(4, 33), 40, 60, 78, 126], 20_000)
        return
    if options.folder is None:
        parser.error("folder must be that of planted.py, got none")
    torch.set_num_threads(1)
    cache = options.cache or options.folder / "alarms.jsonl"
    report(measure(options.folder, cache, confirm=options.confirm), confirm=options.confirm)


if __name__ == "__main__":
    main()
