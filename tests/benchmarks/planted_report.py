"""Markdown tables of the planted models, of whatever is measured. Used by planted.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from planted_conditions import DEFECTS
from planted_derived import DERIVED
from planted_measures import MEASURES, OF_WEIGHTS
from planted_results import KINDS, TRAPS, Results, compact_measures, defects, estimate, label, of_kind, select, table
from planted_statistics import Planted, auc, bootstrap, d_prime, differences, holm, interval, two_sided
from planted_truth_report import truth_table

# An AUC from which a defect counts as seen.
SEEN = 0.9


def by_condition(results: Results, conditions: Iterable[str]) -> str:
    measures = compact_measures(results)
    rows = []
    for condition in conditions:
        blocks = select(results.blocks, "test", [condition])
        rows.append([condition, str(len(blocks)), *(estimate(blocks, measure) for measure in measures)])
    return table(["condition", "n", *map(label, measures)], rows)


def defect_table(results: Results) -> str:
    return by_condition(results, DEFECTS)


def trap_table(results: Results) -> str:
    lines = [by_condition(results, TRAPS), ""]
    for condition in DERIVED:
        rows = [row for row in results.rows if row.get("derived") == condition]
        before, after = ([row[f"select {when}"] for row in rows] for when in ("before", "after"))
        if rows:
            lines.append(
                f"{condition}: loss on the select speeches {np.mean(before):.2f} before, {np.mean(after):.2f} after; "
                f"smallest rise {min(np.subtract(after, before)):.3f} ({len(rows)} models)."
            )
    return "\n".join(lines)


def by_kind(results: Results) -> str:
    """All measures against the kinds of defects."""
    groups = [select(results.blocks, "test", of_kind(kind)) for kind in KINDS]
    rows = [
        [label(measure), *(estimate(blocks, measure) for blocks in [*groups, defects(results.blocks)])]
        for measure in MEASURES
    ]
    return table(["measure", *(f"{k} (n = {len(b)})" for k, b in zip(KINDS, groups, strict=True)), "all"], rows)


def all_measures(results: Results) -> str:
    rows = []
    for condition in [*DEFECTS, *TRAPS]:
        blocks = select(results.blocks, "test", [condition])
        values = [auc(blocks, measure) for measure in MEASURES]
        rows.append([condition, *("-" if np.isnan(value) else f"{value:.2f}" for value in values)])
    return table(["condition", *map(label, MEASURES)], rows)


def smallest_dose(results: Results, measure: str, kind: str) -> str:
    """The mildest defect of a kind that is seen, as all stronger ones are."""
    seen = "none"
    # Strongest first.
    for condition in of_kind(kind):
        if not auc(select(results.blocks, "test", [condition]), measure) >= SEEN:
            break
        seen = condition
    return seen


def dose_table(results: Results) -> str:
    rows = [[label(measure), *(smallest_dose(results, measure, kind) for kind in KINDS)] for measure in MEASURES]
    return table(["measure", *KINDS], rows)


def comparison(blocks: dict[str, list[Planted]], rival: str) -> str:
    """FARMS minus a rival for each kind: difference, interval, p and p after Holm."""
    blocks = {kind: group for kind, group in blocks.items() if group}
    samples = {
        kind: bootstrap(differences(group, "farms", rival), [block.family for block in group])
        for kind, group in blocks.items()
    }
    p = {kind: two_sided(values) for kind, values in samples.items()}
    adjusted = holm(p)
    rows = []
    for kind, group in blocks.items():
        low, high = interval(samples[kind])
        difference = f"{np.nanmean(differences(group, 'farms', rival)):+.3f} [{low:+.3f}, {high:+.3f}]"
        means = [f"{auc(group, measure):.3f}" for measure in ("farms", rival)]
        rows.append([kind, str(len(group)), *means, difference, f"{p[kind]:.4f}", f"{adjusted[kind]:.4f}"])
    return table(["kind", "n", label("farms"), label(rival), "difference", "p", "p (Holm)"], rows)


def primary(results: Results) -> str:
    blocks = {kind: select(results.blocks, "test", of_kind(kind)) for kind in KINDS}
    parts = []
    development = defects(results.blocks, "development")
    for number, rival in enumerate(results.rivals):
        title = "Best rival" if number == 0 else "Best rival that needs no history"
        value = f"AUC {auc(development, rival):.3f}, d' {d_prime(development, rival):.1f}, n = {len(development)}"
        parts.append(f"{title} on the development families: {label(rival)} ({value}).\n\n{comparison(blocks, rival)}")
    return "\n\n".join(parts) or "No development families yet."


def rescaling(results: Results) -> str:
    plain, rescaled = defects(results.blocks), defects(results.rescaled)
    rows = [[label(measure), *(estimate(blocks, measure) for blocks in (plain, rescaled))] for measure in OF_WEIGHTS]
    return table(["measure", f"as trained (n = {len(plain)})", f"rescaled (n = {len(rescaled)})"], rows)


def widths(results: Results) -> str:
    """Windows against whole matrices where their shapes differ, and over roles."""
    blocks = {"blocks of different widths": defects(results.blocks, "widths")}
    layers = {f"layers of all roles: {kind}": select(results.layers, "test", of_kind(kind)) for kind in KINDS}
    return f"{comparison(blocks, 'whole mid')}\n\n{comparison(layers, 'whole mid')}"


def long_trained(results: Results) -> str:
    rows = []
    for row in results.rows:
        if row["group"] != "long":
            continue
        alphas = [f"{a:.3f} ± {e:.3f}" for a, e in zip(row["measures"]["farms"], row["stderr"], strict=True)]
        rows.append([row["name"], *(f"**{a}**" if str(i) in row["planted"] else a for i, a in enumerate(alphas))])
    return table(["model", *(f"block {i}" for i in range(max((len(row) - 1 for row in rows), default=0)))], rows)


def models(results: Results) -> str:
    """How many models of each group there are."""
    groups = dict.fromkeys(row["group"] for row in results.rows)
    counts = {g: sum(row["group"] == g and "derived" not in row for row in results.rows) for g in groups}
    return ", ".join(f"{group} {count}" for group, count in counts.items()) + "."


SECTIONS: dict[str, Callable[[Results], str]] = {
    "Models": models,
    "Defects: AUC [95% interval], d'": defect_table,
    "Traps": trap_table,
    "Kinds of defects, all measures": by_kind,
    f"Mildest defect with AUC of at least {SEEN}": dose_table,
    "Primary test": primary,
    "Rescaling, all defects": rescaling,
    "Functional truth": truth_table,
    "Windows against whole matrices": widths,
    "Alpha of long trained models (planted blocks bold)": long_trained,
    "AUC of all measures": all_measures,
}


def report(results: Results) -> str:
    if not results.means:
        return "No healthy development or false-alarm model is measured yet."
    return "\n\n".join(f"## {title}\n\n{function(results)}" for title, function in SECTIONS.items())
