"""Results of the planted models as they are read, selected and written into tables. Used by planted.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from planted_conditions import DEFECTS, DISGUISES, SUSPECTS
from planted_derived import DERIVED
from planted_jobs import rows_of
from planted_measures import MEASURES, OF_HISTORY
from planted_statistics import (
    Floats,
    Means,
    Planted,
    Row,
    auc,
    best_rival,
    bootstrap,
    d_prime,
    interval,
    of_blocks,
    of_layers,
    planted_blocks,
    position_means,
    shares,
)
from planted_truth import truth_of

KINDS = tuple(dict.fromkeys(condition.kind for condition in DEFECTS.values()))
TRAPS = (*SUSPECTS, *DISGUISES, *DERIVED)
# Measures with an interval for every condition; the rival joins them.
COMPACT = ("farms", "whole mid", "stable rank", "frobenius", "entropy")
# As tables and the figure name the measures; the sign says that more should mean less trained.
LABELS = {
    "farms": "FARMS alpha",
    "whole mid": "whole-matrix alpha",
    "whole peak": "whole-matrix alpha, released `peak`",
    "frobenius": "−Frobenius norm",
    "spectral": "−spectral norm",
    "above edge": "−share above the edge",
    "max / median": "−λmax / median",
    "participation": "participation ratio",
    "gradient": "gradient norm",
    "kl": "−KL when left out",
    "cosine": "cosine of input and output",
    "distance": "−distance from the start (history)",
    "update": "−last change (history)",
}
RIVALS = tuple(name for name in MEASURES if name != "farms")


@dataclass(frozen=True)
class Results:
    """All rows of measured.jsonl, and the loss drops of truth.jsonl."""

    rows: list[Row]
    truth: dict[tuple[str, int], float]

    @cached_property
    def means(self) -> Means:
        return position_means(self.rows)

    @cached_property
    def blocks(self) -> list[Planted]:
        """Planted blocks of models as they are, all groups."""
        return planted_blocks([row for row in self.rows if row.get("derived") != "rescaled"], self.means)

    @cached_property
    def rescaled(self) -> list[Planted]:
        return planted_blocks([row for row in self.rows if row.get("derived") == "rescaled"], self.means)

    @cached_property
    def layers(self) -> list[Planted]:
        """Layers of planted blocks, compared over roles."""
        rows = [row for row in self.rows if "derived" not in row]
        return planted_blocks(rows, position_means(self.rows, of_layers), of_layers)

    @cached_property
    def rivals(self) -> list[str]:
        """The best rival on the development families; if that needs the history, also the best without it."""
        blocks = defects(self.blocks, "development")
        if not blocks:
            return []
        best = best_rival(blocks, RIVALS)
        return [best] if best not in OF_HISTORY else [best, best_rival(blocks, set(RIVALS) - set(OF_HISTORY))]

    def adjusted(self, name: str, measure: str) -> Floats:
        """Values of all blocks of a model, adjusted for depth."""
        (row,) = (row for row in self.rows if row["name"] == name)
        values = of_blocks(row)[measure]
        return (values - self.means[len(values)][measure][:, None])[:, 0]


def read(output: Path) -> Results:
    return Results(list(rows_of(output / "measured.jsonl").values()), truth_of(output))


def select(blocks: Iterable[Planted], group: str, conditions: Iterable[str]) -> list[Planted]:
    names = set(conditions)
    return [block for block in blocks if block.group == group and block.condition in names]


def of_kind(kind: str) -> list[str]:
    return [name for name, condition in DEFECTS.items() if condition.kind == kind]


def defects(blocks: Iterable[Planted], group: str = "test") -> list[Planted]:
    return select(blocks, group, DEFECTS)


def label(measure: str) -> str:
    return LABELS.get(measure, measure)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(header), "|".join(["---"] * len(header)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---|" not in line else f"|{line}|" for line in lines)


def estimate(blocks: Sequence[Planted], measure: str, *, distance: bool = True) -> str:
    """AUC with its interval, and d'."""
    values = shares(blocks, measure)
    if np.isnan(values).all():
        return "-"
    low, high = interval(bootstrap(values, [block.family for block in blocks]))
    text = f"{auc(blocks, measure):.2f} [{low:.2f}, {high:.2f}]"
    return f"{text}, {d_prime(blocks, measure):.1f}" if distance else text


def compact_measures(results: Results) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*COMPACT, *results.rivals]))
