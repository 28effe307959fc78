"""The allocations `sensitivity` and `auto`: the registry names the functions of this file.

`auto` screens all registered allocations, the knapsack's plan and mixtures on 2,048 tokens, improves the best one by
verified moves, measures the finalists on 16,384 other tokens, and prunes the last few of them block by block, as the
result is pruned. Before a recovery these are the best plan, uniform, and two plans between them; each is recovered in
one pass. All losses are KL(dense || pruned) in nats per token on the selection text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Required, TypedDict, Unpack, cast

from hf_farms.blocks import BlockSource, ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.data.selection import Selection, check_selection_apart, split_selection
from hf_farms.metrics.divergence import Batches, check_predicts
from hf_farms.progress import Progress, no_progress
from hf_farms.pruning.calibration_pass import Batch
from hf_farms.registries import METHODS
from hf_farms.reports import SearchRecord, SpectralReport
from hf_farms.search.budget import Budget
from hf_farms.search.levels import code_method, size_text
from hf_farms.search.moves import Moves
from hf_farms.search.recording import make_record, search_key
from hf_farms.search.steps import Search
from hf_farms.search.tokens import token_count
from hf_farms.search.trials import Trial, Trials

__all__ = ["SearchOptions", "search_auto", "search_sensitivity"]


class SearchOptions(TypedDict, total=False):
    """Arguments of both searches beside model and config.

    Attributes:
        selection: text that is not calibration text; its first half is used.
        calibration: calibration data; without any, allocations that need it are not tried.
        spectra: spectra of the model, if they were measured.
        folder: folder for codes (a byte per weight) and hidden states; None keeps them in memory.
        trials: JSON file of the plans tried: the same search continues from it. The best so far stands in it.
        progress: called with the stage and the best so far, steps done, steps in all.
        clock: seconds.
    """

    selection: Required[Iterable[Batch]]
    calibration: Sequence[Batch]
    spectra: SpectralReport | None
    folder: Path | None
    trials: Path | None
    progress: Progress
    clock: Callable[[], float]


def search_auto(source: BlockSource, config: PruneConfig, **options: Unpack[SearchOptions]) -> SearchRecord:
    """Search the allocation with the lowest KL to the dense model; the model is not changed.

    Without `config.minutes` the work is fixed and so is the result: about 60 plans on 2,048 tokens, a table that costs
    as much as 5 L / 4 of them for L blocks, 5 plans on 16,384 tokens, and 3 prunes; with a recovery, two more plans and
    one more prune, and one pass of the recovery over at most 32 sequences in each prune. With it,
    moves end where finalists, and checks of the best plan and of uniform sparsity, need the time left; no check begins
    that does not fit; and the search stops after the pass that is running when the time is over.

    Args:
        source: the dense model.
        config: method, total sparsity, pattern, minutes.
        **options: see `SearchOptions`.

    Raises:
        ModelError: not a causal language model, blocks that cannot be run, or NaN.
        DataError: too little selection data, or calibration text in it.
    """
    search = _search(source, config, **options)
    try:
        search.screen_starts()
        if search.trials.table is not None:
            moves = Moves(search.grid, search.trials.table)
            search.try_moves(lambda plan, count, helped: moves.around(plan, count, helped=helped))
        if not search.budget.over():
            search.check(search.finalists())
    except BaseException as error:
        _keep(search, error)
        raise
    return _finished(search)


def search_sensitivity(source: BlockSource, config: PruneConfig, **options: Unpack[SearchOptions]) -> SearchRecord:
    """Measure the KL of every block alone, and return the plan with the lowest sum; arguments as for `search_auto`."""
    search = _search(source, config, **options)
    table = search.table()
    search.notes.append("The allocation adds up the losses of single blocks; the sum was not measured on the whole.")
    return make_record(
        search.grid, table, winner=Trial("sensitivity", table.best_plan(search.grid)), notes=search.notes
    )


def _search(
    source: BlockSource,
    config: PruneConfig,
    *,
    selection: Iterable[Batch],
    calibration: Sequence[Batch] = (),
    spectra: SpectralReport | None = None,
    folder: Path | None = None,
    trials: Path | None = None,
    progress: Progress = no_progress,
    clock: Callable[[], float] = time.monotonic,
) -> Search:
    """Check the data, and return a search that has not begun."""
    source = cast(ModelBlockSource, source)
    check_predicts(source)
    if any(source.finished(index) is not None for index in range(len(source))):
        raise ValueError("blocks must be dense to be searched, got pruned ones of an earlier run. Pass their `scores`.")
    halves: Selection = split_selection(selection, vocabulary=source.vocabulary)
    check_selection_apart(halves, cast(Batches, calibration))
    source.check_chain(halves.search[0])
    kept = Trials(trials, key=search_key(source, config, cast(Batches, calibration), halves.search))
    minutes = config.minutes if kept.seconds == 0 or config.minutes is None else config.minutes - kept.seconds / 60
    budget = Budget(minutes, clock=clock, before=kept.seconds, seconds_per_plan=kept.seconds_per_plan)
    search = Search(source, config, calibration, halves.search, folder, kept, budget, progress, spectra)
    if METHODS[config.method].adjusts:
        search.notes.append(
            f"The search used masks of {code_method(config.method)!r} in place of {config.method!r}, which also "
            "changes the weights that it keeps."
        )
    if config.refine != "none":
        search.notes.append(f"The search used masks as they are before refinement by {config.refine!r}.")
    if config.recovers:
        search.notes.append("The search measured plans without recovery.")
    progress(f"levels ({size_text(search.grid, folder)})", 0, len(source))
    return search


def _finished(search: Search) -> SearchRecord:
    best = search.trials.best
    assert best is not None
    complete = not (search.is_cut or search.budget.over())
    if not complete:
        search.notes.append(
            "The time limit (`minutes`) ended the search before it was complete: the best plan so far was taken, of "
            f"{len(search.trials)} tried."
        )
    return make_record(
        search.grid,
        search.trials.table,
        winner=best,
        trials=search.trials.ranked(),
        tokens=(token_count(search.screen), token_count(search.refine)),
        complete=complete,
        notes=search.notes,
    )


def _keep(search: Search, error: BaseException) -> None:
    """Save what was tried, and name the best plan so far in the error."""
    search.keep_times()
    if (best := search.trials.best) is not None:
        search.trials.save()
        error.add_note(f"Best allocation so far: {best.name}, KL {best.loss:.4g} nats per token to the dense model.")
