"""The selection text of a prune, and the search of an allocation on it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.blocks import StreamedBlockSource
from hf_farms.data.selection import check_selection_apart, selection_sequences, split_selection
from hf_farms.data.texts import BUILT_IN
from hf_farms.files.atomic_writes import write_text
from hf_farms.processes import from_first_rank
from hf_farms.pruning.searching import search_sparsities
from hf_farms.reports import SearchRecord, json_converter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hf_farms.config import PruneConfig
    from hf_farms.loading.opening import LoadedModel
    from hf_farms.output.folder import OutputFolder
    from hf_farms.output.recipe import Recipe
    from hf_farms.progress import Progress
    from hf_farms.reports import SpectralReport

__all__ = ["TRIALS_NAME", "SelectionText"]

# In the state folder of unfinished work: the plans that were tried, and the result of a search.
TRIALS_NAME, RECORD_NAME = "trials.json", "search.json"
OTHER_KIND = (
    "The selection text is `speeches`, the text inside the package, which is not that of the calibration: where they "
    "differ in kind or language, give `selection` text like that which the model will be used on."
)


class SelectionText:
    """The tokenized selection text, read before anything expensive; empty where nothing is chosen or accepted on it.

    Args:
        recipe: names text and allocation.
        loaded: a causal language model with a tokenizer.
    """

    def __init__(self, recipe: Recipe, loaded: LoadedModel) -> None:
        self._recipe, self._loaded = recipe, loaded
        self.batches: list[Tensor] = []
        self.notes: list[str] = []
        if recipe.prune.needs_selection and recipe.selection is not None:
            self.batches, self.notes = selection_sequences(
                recipe.selection, model=loaded.source.model, tokenizer=loaded.tokenizer
            )
            uses_other = recipe.prune.needs_calibration and recipe.calibration.source != BUILT_IN
            if recipe.selection.source == BUILT_IN and uses_other:
                self.notes.append(OTHER_KIND)

    def check_apart(self, calibration: Sequence[Tensor], evaluation: Tensor | None) -> None:
        """Refuse calibration or evaluation text in the selection text before anything is measured.

        Args:
            calibration: token ids, `(b, n)` each.
            evaluation: token ids that are measured, `(n,)`; None without such a text.

        Raises:
            DataError: a sequence is in both.
        """
        if self.batches:
            selection = split_selection(self.batches)
            check_selection_apart(selection, [{"input_ids": ids} for ids in calibration])
            if evaluation is not None:
                check_selection_apart(selection, [{"input_ids": evaluation[None]}], text="evaluation")

    @property
    def bytes_needed(self) -> int:
        """Bytes on disk for the codes of a streamed model, one per weight."""
        if not self._recipe.prune.searches or not isinstance(self._loaded.source, StreamedBlockSource):
            return 0
        return sum(parameter.numel() for parameter in self._loaded.source.model.parameters())

    def search(
        self,
        config: PruneConfig,
        batches: Sequence[Tensor],
        *,
        spectra: SpectralReport,
        output: OutputFolder,
        progress: Progress,
    ) -> SearchRecord | None:
        """Search the allocation, or load the record of an earlier run; None for an allocation that searches nothing.

        Args:
            config: that of the recipe, with the numbers of all defaults.
            batches: calibration data.
            spectra: of the dense model.
            output: keeps the plans that were tried, so that an interrupted search continues.
            progress: called with every step.
        """
        if not config.searches:
            return None
        source = self._loaded.source
        folder = output.state / "search"

        def compute() -> SearchRecord:
            return search_sparsities(
                source,
                config,
                batches,
                self.batches,
                spectra=spectra,
                folder=folder if isinstance(source, StreamedBlockSource) else None,
                trials=output.state / TRIALS_NAME,
                ranks=output.ranks,
                progress=progress,
            )

        from_first_rank(lambda: _reopen(output), output.ranks)
        record = output.load_or_compute(RECORD_NAME, compute, _save, _load)
        if output.ranks.index == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return replace(record, selection=self._recipe.selection)


def _reopen(output: OutputFolder) -> None:
    """Forget the result of a search that a time limit ended, unless blocks were pruned by it: it may go on."""
    path = output.state / RECORD_NAME
    if path.exists() and not any(output.partial.glob("*.safetensors")) and not _load(path).complete:
        path.unlink()


def _save(record: SearchRecord, path: Path) -> None:
    write_text(path, json.dumps(json_converter().unstructure(record)) + "\n")


def _load(path: Path) -> SearchRecord:
    return json_converter().structure(json.loads(path.read_text(encoding="utf-8")), SearchRecord)
