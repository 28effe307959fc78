"""What allocations.py chooses on the selection text: searched plans, random plans, and the strength of allocations."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from allocations_model import Subject, calibration, selection, with_outlier_bound

from hf_farms import PruneConfig
from hf_farms.blocks import ModelBlockSource
from hf_farms.data.batches import named_batches
from hf_farms.data.selection import split_selection
from hf_farms.pruning.removal_plan import block_targets, plan_targets
from hf_farms.pruning.scoring import score_blocks
from hf_farms.pruning.searching import search_sparsities
from hf_farms.search import evaluation, levels, random_plans
from hf_farms.search.budget import Budget
from hf_farms.search.grid import Grid
from hf_farms.search.steps import REFINE_TOKENS, SCREEN_TOKENS, Search
from hf_farms.search.tokens import split_by_tokens, token_count
from hf_farms.search.trials import Trials

SPREADS = [
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.08,
    0.1,
    0.12,
    0.14,
    0.16,
    0.18,
    0.2,
    0.23,
    0.26,
    0.3,
    0.35,
    0.4,
    0.5,
    0.6,
]
OUTLIERS, OWL_SPREADS = (3.0, 5.0, 7.0, 10.0), (0.04, 0.08, 0.16, 0.24, 0.32)
# Random plans that go on to the tokens of the finalists.
RANDOM_FINALISTS = 5


def choice_file(folder: Path, name: str, sparsity: float, pattern: str = "unstructured") -> Path:
    """The file of a choice."""
    return (
        folder / f"choice-{name}-{sparsity:g}{'' if pattern == 'unstructured' else '-' + pattern.replace(':', '')}.json"
    )


def choose(options: argparse.Namespace) -> None:
    """Choose everything that is missing; what other rows need most first."""
    subject = Subject.load(options)
    for sparsity in options.sparsities:
        _choose_at(subject, PruneConfig(sparsity=sparsity, allocation="auto"), options)
    config = PruneConfig(sparsity=0.5, allocation="auto", pattern="N:8")
    _kept(options.folder, "auto", config, lambda: _search(subject, config, options))


def _choose_at(subject: Subject, config: PruneConfig, options: argparse.Namespace) -> None:
    record = _kept(options.folder, "auto", config, lambda: _search(subject, config, options))
    work = _Screening(subject, config, options)
    for name, spreads in (("ramp", SPREADS), ("dlp", SPREADS)):
        _kept(options.folder, name, config, lambda name=name, spreads=spreads: work.best(work.strengths(name, spreads)))  # type: ignore[misc]
    _kept(options.folder, "owl", config, lambda: work.best(work.owl()))
    _kept(options.folder, "random", config, lambda: work.random(record))
    recovering = replace(config, recover="submodule")
    _kept(options.folder, "auto-recovered", config, lambda: _checked(subject, recovering, record, options))


def _kept(folder: Path, name: str, config: PruneConfig, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    path = choice_file(folder, name, config.sparsity, config.pattern)
    if not path.exists():
        start = time.perf_counter()
        made = make() | {"seconds": round(time.perf_counter() - start, 1)}
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(made), encoding="utf-8")
        unfinished.replace(path)  # other processes may wait for it
        print(
            path.name,
            {k: v for k, v in made.items() if k in ("winner", "spread", "outlier", "loss", "seconds")},
            flush=True,
        )
    chosen: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return chosen


def _search(subject: Subject, config: PruneConfig, options: argparse.Namespace) -> dict[str, Any]:
    batches = calibration(subject, options, seed=0)
    record = search_sparsities(ModelBlockSource(subject.model), config, batches, selection(subject, options))
    found = asdict(record)
    found["sensitivity"] = next((t.sparsities for t in record.trials if t.name == "sensitivity"), None)
    return found


def _checked(
    subject: Subject, config: PruneConfig, found: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Choose as `auto` does before a recovery: only its last step differs, and starts from the plan already found."""
    source = ModelBlockSource(subject.model)
    batches = named_batches(calibration(subject, options, seed=0), vocabulary=source.vocabulary)
    halves = split_selection(selection(subject, options), vocabulary=source.vocabulary)
    search = Search(source, config, batches, halves.search, None, Trials(), Budget(None))
    measured = [trial for trial in found["trials"] if trial["refined"] is not None]
    best = min(measured, key=lambda trial: float(trial["refined"]))
    plan = tuple(round(sparsity * search.grid.steps) for sparsity in best["sparsities"])
    search.measure([("uniform", search.grid.uniform), (best["name"], plan)], "screened")
    search.check(search.finalists())
    tried = [asdict(trial) for trial in search.trials.ranked()]
    winner = search.grid.sparsities(search.trials.ranked()[0].plan)
    return {"winner": tried[0]["name"], "sparsities": search.grid.exact(winner), "trials": tried}


class _Screening:
    """Losses of plans on cached levels, as `auto` screens them."""

    def __init__(self, subject: Subject, config: PruneConfig, options: argparse.Namespace) -> None:
        self._subject, self._config, self._options = subject, config, options
        self._source = ModelBlockSource(subject.model)
        self._grid = Grid.of(self._source, config)
        self._screen, self._refine = split_by_tokens(
            split_selection(selection(subject, options)).search, SCREEN_TOKENS, REFINE_TOKENS
        )
        self._batches = calibration(subject, options, seed=0)
        self._codes: levels.LevelCodes | None = None

    @property
    def codes(self) -> levels.LevelCodes:
        """Built when they are first needed."""
        if self._codes is None:
            batches = [{"input_ids": batch} for batch in self._batches]
            self._codes = levels.build_codes(self._source, self._grid, method="wanda", batches=batches)
        return self._codes

    def strengths(self, name: str, spreads: list[float]) -> Iterator[tuple[dict[str, Any], list[float]]]:
        """Settings and block sparsities of an allocation."""
        config = replace(self._config, allocation=name)
        scores = score_blocks(self._source, config, self._batches) if name == "dlp" else None
        for spread in spreads:
            yield {"spread": spread}, self._targets(replace(config, spread=spread), scores)

    def owl(self) -> Iterator[tuple[dict[str, Any], list[float]]]:
        """The same for OWL, at several bounds of an outlier."""
        for bound in OUTLIERS:
            config = replace(self._config, allocation="owl")
            with with_outlier_bound(bound):
                scores = score_blocks(self._source, config, self._batches)
            for spread in OWL_SPREADS:
                yield {"spread": spread, "outlier": bound}, self._targets(replace(config, spread=spread), scores)

    def _targets(self, config: PruneConfig, scores: Any) -> list[float]:
        return block_targets(self._source, plan_targets(self._source, config, scores=scores), config)

    def best(self, trials: Iterator[tuple[dict[str, Any], list[float]]]) -> dict[str, Any]:
        """The settings with the lowest loss on the screening tokens, and all losses."""
        tried = [(settings, self._grid.nearest(targets)) for settings, targets in trials]
        losses = self._losses([plan for _, plan in tried], self._screen)
        rows = [settings | {"loss": loss} for (settings, _), loss in zip(tried, losses, strict=True)]
        return min(rows, key=lambda row: row["loss"]) | {"trials": rows}

    def _losses(self, plans: list[Any], batches: Any) -> list[float]:
        return [
            loss
            for start in range(0, len(plans), 6)
            for loss in evaluation.plan_losses(self._source, self.codes, plans[start : start + 6], batches)
        ]

    def random(self, record: dict[str, Any]) -> dict[str, Any]:
        """The best of as many random plans as `auto` measured, its table counted by its forward passes."""
        screened = len(record["trials"])
        # A row of the table is shared up to its block: half of the passes, on half of the tokens.
        table = sum(map(len, record["table"])) / 2 / 2
        count = round(screened + table)
        plans = random_plans.random_plans(self._grid, count)
        losses = self._losses(plans, self._screen)
        ranked = sorted(range(len(plans)), key=losses.__getitem__)[:RANDOM_FINALISTS]
        refined = self._losses([plans[i] for i in ranked], self._refine)
        best = min(range(len(ranked)), key=refined.__getitem__)
        plan = plans[ranked[best]]
        return {
            "sparsities": self._grid.exact(self._grid.sparsities(plan)),
            "loss": refined[best],
            "screened": min(losses),
            "plans": count,
            "tokens": [token_count(self._screen), token_count(self._refine)],
        }
