"""Run the search of an allocation that measures pruned models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hf_farms.blocks import BlockSource
from hf_farms.config import PruneConfig
from hf_farms.data.batches import named_batches
from hf_farms.errors import DataError
from hf_farms.processes import ONE_PROCESS, WorkingRanks
from hf_farms.progress import Progress, no_progress
from hf_farms.pruning.calibration_pass import Batch
from hf_farms.pruning.sharing import alone
from hf_farms.registries import ALLOCATIONS, load
from hf_farms.reports import SearchRecord, SpectralReport

__all__ = ["search_sparsities"]


def search_sparsities(
    source: BlockSource,
    config: PruneConfig,
    calibration: Sequence[Batch],
    selection: Iterable[Batch] | None,
    *,
    spectra: SpectralReport | None = None,
    folder: Path | None = None,
    trials: str | Path | None = None,
    ranks: WorkingRanks = ONE_PROCESS,
    progress: Progress = no_progress,
) -> SearchRecord:
    """Run the search that the allocation of `config` names; the model is not changed.

    Args:
        source: the dense model.
        config: names an allocation that searches.
        calibration: calibration data; empty if the method needs none.
        selection: data of another text.
        spectra: spectra of the model, if they were measured.
        folder: for hidden states and codes; None keeps them in memory.
        trials: JSON file of the plans that were tried.
        ranks: of several processes the first one searches, and all return its record.
        progress: called with every step.

    Raises:
        DataError: there is no selection data, too little, or calibration text in it.
        ModelError: the model is not a causal language model.
    """
    entry = ALLOCATIONS[config.allocation]
    if selection is None:
        raise DataError(
            f"selection must be given for allocation {config.allocation!r}, got None.",
            hint="Pass token ids of a text that calibrates nothing, or choose allocation='farms'.",
        )
    assert entry.search is not None
    # The search stands above this package, which knows it by name only.
    search: Callable[..., SearchRecord] = load(entry.search)
    return alone(
        "the search",
        lambda: search(
            source,
            config,
            calibration=named_batches(calibration, vocabulary=source.vocabulary) if calibration else [],
            selection=selection,
            spectra=spectra,
            folder=folder,
            trials=Path(trials) if trials is not None else None,
            progress=progress,
        ),
        ranks,
    )
