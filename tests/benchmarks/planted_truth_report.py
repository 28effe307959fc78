"""The functional truth of planted models beside their measures. Used by planted.py."""

from __future__ import annotations

import numpy as np
from planted_conditions import DEFECTS
from planted_measures import MEASURES
from planted_results import Results, label, table
from planted_statistics import Planted, bootstrap, bootstrap_spearman, interval, spearman


def with_truth(results: Results) -> list[tuple[Planted, float]]:
    """Planted blocks of defects, and their loss drop minus that of the twin's block."""
    pairs = []
    for block in results.blocks:
        own = results.truth.get((block.model, block.position))
        twin = results.truth.get((f"{block.group}-{block.family}-healthy", block.position))
        if block.condition in DEFECTS and own is not None and twin is not None:
            pairs.append((block, own - twin))
    return pairs


def truth_table(results: Results) -> str:
    """Spearman of each measure with the truth, and the truth of each condition."""
    pairs = with_truth(results)
    if len(pairs) < 3:
        return "Too few blocks yet."
    blocks, truth = [block for block, _ in pairs], np.array([value for _, value in pairs])
    families = [block.family for block in blocks]
    rows = []
    for measure in MEASURES:
        values = np.array([block.own[measure][0] for block in blocks])
        low, high = interval(bootstrap_spearman(values, truth, families))
        rows.append([label(measure), f"{spearman(values, truth):+.2f} [{low:+.2f}, {high:+.2f}]"])
    drops = []
    for condition in DEFECTS:
        chosen = np.array([block.condition == condition for block in blocks])
        if chosen.any():
            low, high = interval(bootstrap(truth[chosen], np.array(families)[chosen].tolist()))
            mean, n = f"{1000 * truth[chosen].mean():+.2f}", str(chosen.sum())
            drops.append([condition, n, f"{mean} [{1000 * low:+.2f}, {1000 * high:+.2f}]"])
    return "\n\n".join(
        [
            f"{len(results.truth)} blocks trained; planted blocks of defects with a twin: {len(blocks)}.",
            table(["measure", "Spearman"], rows),
            table(["condition", "n", "1000 x loss drop minus that of the twin"], drops),
            table(["model, all blocks", "Spearman of FARMS with the loss drop"], within_models(results)),
        ]
    )


def within_models(results: Results) -> list[list[str]]:
    """Models of which every block was trained alone."""
    rows = []
    for name in dict.fromkeys(model for model, _ in results.truth):
        drops = np.array([drop for (model, _), drop in sorted(results.truth.items()) if model == name])
        known = [row for row in results.rows if row["name"] == name]
        if known and len(drops) == len(known[0]["stderr"]):
            rows.append([name, f"{spearman(results.adjusted(name, 'farms'), drops):+.2f}"])
    return rows
