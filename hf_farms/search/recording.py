"""The record of a search for the report, and the key that tells searches apart."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict

from hf_farms.blocks import BlockSource
from hf_farms.config import PruneConfig
from hf_farms.metrics.divergence import Batches
from hf_farms.reports import SearchRecord, SearchTrial
from hf_farms.search.checking import rank_correlation
from hf_farms.search.grid import Grid
from hf_farms.search.sensitivity import SensitivityTable
from hf_farms.search.trials import Stage, Trial

__all__ = ["make_record", "search_key"]

# Stages that some plans reach.
LATER: tuple[Stage, ...] = ("refined", "pruned", "recovered")
# JSON has no infinity.
LARGEST = 1e30


def make_record(
    grid: Grid,
    table: SensitivityTable | None,
    *,
    winner: Trial,
    trials: Sequence[Trial] = (),
    tokens: tuple[int, int] = (0, 0),
    complete: bool = True,
    notes: Sequence[str] = (),
) -> SearchRecord:
    """Return the record of a search.

    Args:
        grid: the levels.
        table: losses of single blocks; None if not measured.
        winner: the trial whose plan is taken.
        trials: all of them, the best first.
        tokens: of the selection text, behind screened and refined losses.
        complete: whether all planned work was done.
        notes: what a reader must know.
    """
    last: Stage = "recovered" if any("recovered" in trial.losses for trial in trials) else "pruned"
    both = [trial.losses for trial in trials if {"refined", last} <= set(trial.losses)]
    return SearchRecord(
        winner=winner.name,
        sparsities=tuple(grid.exact(grid.sparsities(winner.plan))),
        trials=tuple(
            SearchTrial(
                name=trial.name,
                sparsities=tuple(grid.sparsities(trial.plan)),
                screened=_finite(trial.losses["screened"]),
                **{stage: _finite(trial.losses[stage]) for stage in LATER if stage in trial.losses},
            )
            for trial in trials
            if "screened" in trial.losses
        ),
        table_sparsities=tuple(level / grid.steps for level in table.levels) if table else (),
        table=tuple(tuple(map(_finite, losses)) for losses in table.losses) if table else (),
        screen_tokens=tokens[0],
        refine_tokens=tokens[1] if any("refined" in trial.losses for trial in trials) else 0,
        rank_correlation=rank_correlation([x["refined"] for x in both], [x[last] for x in both]),
        complete=complete,
        notes=tuple(dict.fromkeys(notes)),
    )


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else LARGEST


def search_key(source: BlockSource, config: PruneConfig, calibration: Batches, selection: Batches) -> str:
    """Return a checksum of model shape, settings and data; `minutes` may change between two runs."""
    settings = {name: value for name, value in asdict(config).items() if name != "minutes"}
    layers = [[layer.name, *layer.shape] for index in range(len(source)) for layer in source.metadata(index).layers]
    digest = hashlib.sha256(json.dumps([source.name, layers, settings], sort_keys=True, default=str).encode())
    for batches in (calibration, selection):
        for batch in batches:
            for name, value in sorted(batch.items()):
                digest.update(f"{name}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
