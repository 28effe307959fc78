"""The steps of a search: starts, moves, finalists, and a check by sequential pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from hf_farms.blocks import ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.metrics.divergence import Batches
from hf_farms.progress import Progress, no_progress
from hf_farms.pruning.calibration_pass import Batch
from hf_farms.reports import SpectralReport
from hf_farms.search.budget import Budget
from hf_farms.search.checking import can_check
from hf_farms.search.evaluation import plan_losses
from hf_farms.search.final_check import FinalCheck, check_seconds
from hf_farms.search.grid import Grid, Plan
from hf_farms.search.levels import LevelCodes, build_codes, code_method
from hf_farms.search.sensitivity import SensitivityTable, measure_sensitivity
from hf_farms.search.starts import Candidate, Starts, between, mixtures
from hf_farms.search.tokens import spaced, split_by_tokens
from hf_farms.search.trials import Stage, Trial, Trials

__all__ = ["MOVES", "REFINE_TOKENS", "SCREEN_TOKENS", "Search"]

# Tokens that every plan, and that the finalists are measured on; those of the sensitivity table.
SCREEN_TOKENS, REFINE_TOKENS, TABLE_TOKENS = 2048, 16_384, 1024
# Verified moves, and how many are measured in one pass; the best of a pass is where the next one starts.
MOVES, MOVES_AT_ONCE = 30, 6
# Plans measured in one pass, so that the time is looked at in between.
STARTS_AT_ONCE = 6
# Finalists beside uniform.
FINALISTS = 4
# Share of the time left that the sensitivity table may take.
TABLE_SHARE = 0.4


@dataclass
class Search:
    """The state of one search.

    Attributes:
        source: the dense model.
        config: method, total sparsity, pattern, minutes.
        calibration: calibration data; empty without any.
        selection: the half that searches.
        folder: for codes and hidden states; None keeps them in memory.
        trials: what was tried.
        budget: the time.
        progress: called with every step.
        spectra: spectra of the model, if they were measured.
        notes: what a reader must know.
        is_cut: whether something was left out for lack of time.
    """

    source: ModelBlockSource
    config: PruneConfig
    calibration: Sequence[Batch]
    selection: Batches
    folder: Path | None
    trials: Trials
    budget: Budget
    progress: Progress = no_progress
    spectra: SpectralReport | None = None
    notes: list[str] = field(default_factory=list)
    is_cut: bool = False

    def __post_init__(self) -> None:
        # Plans of this run in its order: a continued search takes the same steps, with losses from the file.
        self._visited: dict[Plan, Trial] = {}
        self.grid = Grid.of(self.source, self.config)
        self.screen, self.refine = split_by_tokens(self.selection, SCREEN_TOKENS, REFINE_TOKENS)
        self._codes: LevelCodes | None = None
        self._seconds_of_checks: float | None = None

    @property
    def codes(self) -> LevelCodes:
        """Codes of all weights, built when they are first needed."""
        if self._codes is None:
            method = code_method(self.config.method)
            self._codes = build_codes(
                self.source,
                self.grid,
                method=method,
                batches=cast(Batches, self.calibration),
                folder=self.folder,
                progress=self.progress,
            )
        return self._codes

    def table(self) -> SensitivityTable:
        """Return the sensitivity table: of an earlier run, or measured on the screening tokens."""
        if self.trials.table is None:
            batches = self._affordable(spaced(self.screen, TABLE_TOKENS))
            table = measure_sensitivity(self.source, self.codes, self.grid, batches, progress=self.progress)
            self.trials.set_table(table)
        return cast(SensitivityTable, self.trials.table)

    def _affordable(self, batches: Batches) -> Batches:
        """Return as many batches as the table may take of the time left, at least one."""
        plans = 5 * len(self.source) / 2 * len(batches) / len(self.screen)
        share = TABLE_SHARE * self.budget.left() / max(1e-9, self.budget.seconds_per_plan * plans)
        count = max(1, min(len(batches), int(share * len(batches)) if math.isfinite(share) else len(batches)))
        if count < len(batches):
            self.notes.append(f"The sensitivity table was measured on {count} of {len(batches)} sequences: `minutes`.")
        return batches[:count]

    def measure(self, candidates: Sequence[Candidate], stage: Stage) -> list[Trial]:
        """Measure candidates that were not measured, a few per pass, while there is time."""
        measured: list[Trial] = []
        for start in range(0, len(candidates), STARTS_AT_ONCE):
            if self.budget.over() and self.trials.best is not None:
                self.is_cut = True
                break
            tried = self.trials.measure(candidates[start : start + STARTS_AT_ONCE], stage, self.losses(stage))
            self._visited |= {trial.plan: trial for trial in tried}
            measured += tried
            self.show(stage, min(len(candidates), start + STARTS_AT_ONCE), len(candidates))
        return measured

    def losses(self, stage: Stage) -> Callable[[list[Plan]], list[float]]:
        """Return a function that measures plans on cached levels."""
        batches = self.screen if stage == "screened" else self.refine

        def losses(plans: list[Plan]) -> list[float]:
            codes = self.codes
            work = partial(plan_losses, self.source, codes, plans, batches)
            return self.budget.timed(work, plans=len(plans) * len(batches) / len(self.screen))

        return losses

    def _screened(self) -> list[Trial]:
        """Return the plans of this run, the best first."""
        return sorted(self._visited.values(), key=lambda trial: trial.losses["screened"])

    def show(self, stage: Stage, done: int, total: int) -> None:
        """Tell the progress of a stage, with the best plan so far."""
        self.keep_times()
        best = self.trials.best
        named = f": best so far {best.name}, KL {best.loss:.4g}" if best is not None else ""
        self.progress(f"{STAGES[stage]}{named}", done, total)

    def keep_times(self) -> None:
        """Note the time that was used, and that of a plan, for a run that continues."""
        self.trials.seconds, self.trials.seconds_per_plan = self.budget.used(), self.budget.seconds_per_plan

    def screen_starts(self) -> None:
        """Screen uniform, all registered allocations, the knapsack's plan, and mixtures of the best."""
        starts = Starts(
            self.source,
            self.config,
            self.grid,
            batches=self.calibration,
            spectra=self.spectra,
            folder=self.folder,
            progress=self.progress,
        )
        self.measure([("uniform", self.grid.uniform)], "screened")
        self.measure(list(starts.plans()), "screened")
        self.notes += starts.notes
        if self.budget.over():
            return
        knapsack = ("sensitivity", self.table().best_plan(self.grid))
        self.measure([knapsack, between(*knapsack, self.grid, share=0.5)], "screened")
        best = [(trial.name, trial.plan) for trial in self._screened()]
        self.measure(mixtures([x for x in best if not x[0].startswith(("move", "mixture"))], self.grid), "screened")

    def try_moves(self, proposals: Callable[[Plan, int, Sequence[Plan]], list[Candidate]]) -> None:
        """Try moves from the best plan, a few at a time.

        Args:
            proposals: function of the plan, the number of moves, and the plans that improved on the last one.
        """
        helped: list[Plan] = []
        done = 0
        while done < MOVES:
            if self._must_finish():
                self.is_cut = True
                return
            base = self._screened()[0]
            moves = proposals(base.plan, min(MOVES_AT_ONCE, MOVES - done), helped)
            named = [(f"move {done + number}: {name}", plan) for number, (name, plan) in enumerate(moves, 1)]
            if not named:
                return
            tried = self.measure(named, "screened")
            helped = [trial.plan for trial in tried if trial.losses["screened"] < base.losses["screened"]]
            done += len(named)

    def _must_finish(self) -> bool:
        """Whether the time left is needed for the finalists, and to check the best plan and uniform if that fits."""
        if not self.budget.limited:
            return False
        finalists = (FINALISTS + 1) * len(self.refine) / len(self.screen) * self.budget.seconds_per_plan
        if self._seconds_of_checks is None:
            checks = 2 * check_seconds(self) if can_check(self.source) else 0.0
            self._seconds_of_checks = checks if self.budget.has(finalists + checks) else 0.0
        return not self.budget.has(finalists + self._seconds_of_checks)

    def finalists(self) -> list[Trial]:
        """Measure the best plans, the best start and uniform on the other tokens; return them, the best first."""
        ranked = self._screened()
        starts = [trial for trial in ranked if not trial.name.startswith("move")]
        chosen = {
            trial.plan: trial for trial in [*ranked[: FINALISTS - 1], *starts[:1], self.trials[self.grid.uniform]]
        }
        if len(chosen) > 1:
            self.measure([(trial.name, trial.plan) for trial in chosen.values()], "refined")
        # Not all of the file: an earlier run may have measured more.
        return sorted(
            (trial for trial in chosen.values() if "refined" in trial.losses), key=lambda trial: trial.losses["refined"]
        )

    def check(self, finalists: Sequence[Trial]) -> None:
        """Prune the best finalists and uniform block by block, with one pass of a recovery, and measure them again."""
        FinalCheck(self, finalists).run()


STAGES: dict[Stage, str] = {"screened": "search", "refined": "finalists", "pruned": "check", "recovered": "check"}
