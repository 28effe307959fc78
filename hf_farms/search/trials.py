"""Trials: the plans that were tried, kept in a file so that an interrupted search continues."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import write_text
from hf_farms.search.grid import Plan
from hf_farms.search.sensitivity import SensitivityTable

__all__ = ["Stage", "Trial", "Trials"]

Stage = Literal["screened", "refined", "pruned", "recovered"]


@dataclass
class Trial:
    """A plan with its losses by stage."""

    name: str
    plan: Plan
    losses: dict[Stage, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The loss of the latest stage."""
        return next((loss for loss in self.rank() if math.isfinite(loss)), math.inf)

    def rank(self) -> tuple[float, ...]:
        """Return a sort key: the losses of later stages count first; a plan that reached none comes after."""
        return tuple(self.losses.get(stage, math.inf) for stage in reversed(get_args(Stage)))


class Trials:
    """Tried plans by plan, and the sensitivity table.

    Args:
        path: JSON file that is written after every measurement; None keeps them in memory.
        key: settings and data of the search.

    Raises:
        OutputError: the file exists, and is not that of a search with this key: it is not overwritten.
    """

    def __init__(self, path: Path | None = None, *, key: str = "") -> None:
        self._path, self._key = path, key
        self.table: SensitivityTable | None = None
        # Of the search so far, and of a screened plan; 0 if unknown.
        self.seconds = self.seconds_per_plan = 0.0
        self._trials: dict[Plan, Trial] = {}
        self._load()

    def __len__(self) -> int:
        return len(self._trials)

    def __contains__(self, plan: object) -> bool:
        return plan in self._trials

    def __getitem__(self, plan: Plan) -> Trial:
        return self._trials[plan]

    def ranked(self, *, stage: Stage | None = None) -> list[Trial]:
        """Return all trials, the best first.

        Args:
            stage: sort by the loss of this stage, and leave out trials without it; None: later stages count first.
        """
        if stage is None:
            return sorted(self._trials.values(), key=Trial.rank)
        reached = [trial for trial in self._trials.values() if stage in trial.losses]
        return sorted(reached, key=lambda trial: trial.losses[stage])

    @property
    def best(self) -> Trial | None:
        """The best trial so far."""
        return next(iter(self.ranked()), None)

    def set_table(self, table: SensitivityTable) -> None:
        """Keep the sensitivity table."""
        self.table = table
        self.save()

    def measure(
        self, candidates: Sequence[tuple[str, Plan]], stage: Stage, losses: Callable[[list[Plan]], list[float]]
    ) -> list[Trial]:
        """Measure the plans that have no loss of this stage yet.

        Args:
            candidates: names and plans; a plan that was tried keeps its first name.
            stage: of the losses.
            losses: function of plans.

        Returns:
            The trial of each distinct plan.
        """
        named = {plan: name for name, plan in reversed(candidates)}
        missing = [plan for plan in dict.fromkeys(plan for _, plan in candidates) if not self.has(plan, stage)]
        for plan, loss in zip(missing, losses(missing) if missing else [], strict=True):
            self._trials.setdefault(plan, Trial(named[plan], plan)).losses[stage] = loss
        if missing:
            self.save()
        return [self._trials[plan] for plan in dict.fromkeys(plan for _, plan in candidates)]

    def has(self, plan: Plan, stage: Stage) -> bool:
        """Return whether a plan has a loss of a stage."""
        return plan in self._trials and stage in self._trials[plan].losses

    def save(self) -> None:
        """Write the file."""
        if self._path is None:
            return
        document = {
            "key": self._key,
            "seconds": self.seconds,
            "seconds_per_plan": self.seconds_per_plan,
            "best": self.best.name if self.best else None,
            "table": {"levels": self.table.levels, "losses": self.table.losses} if self.table else None,
            "trials": [
                {"name": trial.name, "plan": trial.plan, "losses": _finite(trial.losses)} for trial in self.ranked()
            ],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps(document, allow_nan=False) + "\n")

    def _load(self) -> None:
        if self._path is None or not self._path.exists():
            return
        reason = "it is no such file"
        try:
            document: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            if document["key"] != self._key:
                reason = "it belongs to other settings or data"
                raise ValueError(reason)
            table = document["table"]
            trials = [_trial(item) for item in document["trials"]]
            # Files of earlier versions have no time of a plan.
            seconds, per_plan = float(document["seconds"]), float(document.get("seconds_per_plan", 0))
            _check(trials, seconds, per_plan)
            self.table = table and SensitivityTable(tuple(table["levels"]), tuple(map(tuple, table["losses"])))
            self.seconds, self.seconds_per_plan = seconds, per_plan
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(
                f"trials must be a new file, or that of the same search, got {str(self._path)!r}: {reason}.",
                hint="Choose another path, or delete the file to start again.",
            ) from error
        self._trials = {trial.plan: trial for trial in trials}


def _trial(item: dict[str, Any]) -> Trial:
    losses = {stage: _number(loss) for stage, loss in item["losses"].items() if stage in get_args(Stage)}
    return Trial(str(item["name"]), tuple(map(int, item["plan"])), losses)


def _check(trials: list[Trial], *seconds: float) -> None:
    """Raise ValueError for what no search writes: plans of several models, levels of no grid, NaN, no time."""
    levels = [level for trial in trials for level in trial.plan]
    losses = [loss for trial in trials for loss in trial.losses.values()]
    one_model = len({len(trial.plan) for trial in trials}) <= 1 and all(0 <= level < 255 for level in levels)
    if not one_model or any(map(math.isnan, losses)) or not all(0 <= s < math.inf for s in seconds):
        raise ValueError


def _finite(losses: dict[Stage, float]) -> dict[Stage, float | None]:
    # JSON has no infinity.
    return {stage: loss if math.isfinite(loss) else None for stage, loss in losses.items()}


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)
