"""The plans that a search starts from: all registered allocations, at several strengths and with other ends."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Protocol

from hf_farms.allocation.plan import Scores
from hf_farms.blocks import BlockSource
from hf_farms.config import FarmsConfig, PruneConfig
from hf_farms.config.effects import given_fields
from hf_farms.config.ends import Ends
from hf_farms.errors import DataError, HfFarmsWarning, ModelError, NoEffectWarning
from hf_farms.progress import Progress
from hf_farms.pruning.calibration_pass import Batch
from hf_farms.pruning.removal_plan import block_targets, plan_targets
from hf_farms.pruning.scoring import score_blocks
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import SpectralReport
from hf_farms.search.grid import Grid, Plan
from hf_farms.spectra.analysis import analyze

__all__ = ["Starts", "between", "mixtures"]

# Multiples of the default spread, for allocations that have one.
STRENGTHS = (1.0, 0.5, 2.0)
# Beside `config.ends`: a healthy first or last block with a light tail may turn a gain into a loss.
OTHER_ENDS: tuple[Ends, ...] = ("measured", "apart")
# Names of plans between uniform and another.
SHARES = {0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}
# Pairs of the best starts are mixed.
MIXED = 3

Candidate = tuple[str, Plan]


class _Planner(Protocol):
    """Plan an allocation at a spread (None: its default) with a choice of ends."""

    def __call__(self, *, spread: float | None = None, ends: Ends = ...) -> Plan: ...


class Starts:
    """Plans of the registered allocations.

    Args:
        source: the dense model.
        config: of the search; sparsity, pattern and measurement are used.
        grid: the levels.
        batches: calibration data; allocations that need some are left out without it.
        spectra: a report for one measurement, or None.
        folder: for hidden states; None keeps them in memory.
        progress: called with the steps of measurements.
    """

    def __init__(
        self,
        source: BlockSource,
        config: PruneConfig,
        grid: Grid,
        *,
        batches: Sequence[Batch],
        spectra: SpectralReport | None,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        self._source, self._config, self._grid = source, config, grid
        self._batches, self._folder, self._progress = batches, folder, progress
        self._reports: list[tuple[FarmsConfig, SpectralReport]] = [(spectra.config, spectra)] if spectra else []
        self._scores: Scores | None = None
        self.notes: list[str] = []

    def plans(self) -> Iterator[Candidate]:
        """Yield a name and a plan for every allocation, strength and choice of ends that can be planned."""
        self._note_untried()
        for name, entry in ALLOCATIONS.items():
            if entry.search or (entry.needs_activations and not self._batches):
                continue
            try:
                plan = self._planner(name)
                yield name, plan()
                if "spread" in entry.options and entry.spread is not None:
                    for spread in (min(0.99, strength * entry.spread) for strength in STRENGTHS):
                        if spread != entry.spread:
                            yield f"{name}, spread {spread:g}", plan(spread=spread)
                if "ends" in entry.options:
                    for ends in OTHER_ENDS:
                        if ends != self._config.ends:
                            yield f"{name}, ends {ends}", plan(ends=ends)
            except (DataError, ModelError, ValueError) as error:
                # One allocation that fails on this model must not end the search.
                self.notes.append(f"Allocation {name!r} was not tried: {error}")
                warnings.warn(self.notes[-1], HfFarmsWarning, stacklevel=2)

    def _note_untried(self) -> None:
        names = [repr(name) for name, entry in ALLOCATIONS.items() if entry.needs_activations and not self._batches]
        if names:
            self.notes.append(
                f"Allocations that need calibration data were not tried, as method {self._config.method!r} uses none: "
                f"{', '.join(names)}."
            )

    def _planner(self, name: str) -> _Planner:
        """Measure for an allocation; return its plan as a function of the spread and the ends."""
        # A level is one sparsity for all layers of a block.
        entry, config = ALLOCATIONS[name], replace(self._config, allocation=name, granularity="block")
        spectra = self._spectra(config) if entry.needs_spectra else None
        scores = self._scored(config) if entry.needs_activations else None

        def plan(*, spread: float | None = None, ends: Ends = config.ends) -> Plan:
            changed = replace(config, spread=spread, ends=ends)
            with warnings.catch_warnings():
                # The user did not choose these options; a plan without an effect is uniform, which is tried anyway.
                warnings.simplefilter("ignore", NoEffectWarning)
                targets = plan_targets(self._source, changed, spectra=spectra, scores=scores)
            return self._grid.nearest(block_targets(self._source, targets, changed))

        return plan

    def _scored(self, config: PruneConfig) -> Scores:
        """Return the scores for an allocation: those of all allocations take one pass, unless one of them fails."""
        if self._scores is None:
            names = [name for name, entry in ALLOCATIONS.items() if entry.needs_activations and not entry.search]
            try:
                self._scores = self._score(replace(config, allocation="+".join(names)))
            except (DataError, ModelError, ValueError):
                self._scores = {}
        return self._scores if config.allocation in self._scores else self._score(config)

    def _score(self, config: PruneConfig) -> Scores:
        return score_blocks(self._source, config, self._batches, activations=self._folder, progress=self._progress)

    def _spectra(self, config: PruneConfig) -> SpectralReport:
        measurement = config.measurement()
        known = next((report for of, report in self._reports if of == measurement), None)
        if known is None:
            with given_fields(()):
                known = analyze(
                    self._source, measurement, progress=lambda done, total: self._progress("analyze", done, total)
                )
            self._reports.append((measurement, known))
        return known


def between(name: str, plan: Plan, grid: Grid, *, share: float) -> Candidate:
    """Return the plan a share of the way from uniform to a plan, and its name; uniform stays as it is."""
    if plan == grid.uniform:
        return name, plan
    sparsities = [grid.target + share * (level / grid.steps - grid.target) for level in plan]
    return f"{SHARES[share]} of {name}", grid.nearest(sparsities)


def mixtures(best: Sequence[Candidate], grid: Grid) -> list[Candidate]:
    """Return the means of pairs of the best plans."""
    mixed = []
    for (one, first), (other, second) in combinations(best[:MIXED], 2):
        mean = [(a + b) / 2 / grid.steps for a, b in zip(first, second, strict=True)]
        mixed.append((f"mixture of {one} and {other}", grid.nearest(mean)))
    return mixed
