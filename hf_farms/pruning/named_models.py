"""Load a model by its name for `prune`, with the default texts that it needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from hf_farms.config import CalibrationConfig, PruneConfig, SelectionConfig
from hf_farms.pruning.calibration_pass import Batch

__all__ = ["load_named"]


def load_named(
    name: str | Path, config: PruneConfig, calibration: Iterable[Batch] | None, selection: Iterable[Batch] | None
) -> tuple[nn.Module, Iterable[Batch] | None, Iterable[Batch] | None, tuple[str, ...]]:
    """Load a model by name, and the default calibration and selection sequences where none are given."""
    # Not at the top: a model in memory needs none of it.
    from hf_farms.data.calibration import calibration_sequences
    from hf_farms.data.selection import selection_sequences
    from hf_farms.loading.opening import load_model

    calibrates = calibration is None and config.needs_calibration
    selects = selection is None and config.needs_selection
    loaded = load_model(name, tokenizer=calibrates or selects, head=config.searches or config.trains)
    notes = loaded.notes
    if calibrates:
        calibration, more = calibration_sequences(CalibrationConfig(), model=loaded.model, tokenizer=loaded.tokenizer)
        notes = (*notes, *more)
    if selects:
        selection, more = selection_sequences(SelectionConfig(), model=loaded.model, tokenizer=loaded.tokenizer)
        notes = (*notes, *more)
    return loaded.model, calibration, selection, notes
