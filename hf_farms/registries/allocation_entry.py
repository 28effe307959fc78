"""AllocationEntry: a rule that distributes sparsity across blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hf_farms.registries.base import Entry, check_path

__all__ = ["AllocationEntry"]


@dataclass(frozen=True, kw_only=True)
class AllocationEntry(Entry):
    """A rule that gives each block its sparsity.

    The function is called with a `hf_farms.allocation.sparsity_maps.BlockScores` and a `PruneConfig`, and returns the
    sparsity of each block. The scores in it depend on `needs`: None for "nothing"; alphas over "windows" or of the
    whole "matrix"; for "activations" one number for each block, from the function `score`, or None; for "losses" the
    sparsity of each block, from the function `search`.
    With `granularity="layer"`, an entry that lists it among `options` is called once for each role, with the weights
    and scores of that role.

    Attributes:
        score: import path of a function of the layers of a block, each a `hf_farms.pruning.scoring.MeasuredLayer`, that
            returns the score of the block, or None where it can have none; required if `needs` is "activations", else
            not allowed.
        statistic: import path of the statistic of each layer's inputs that `score` reads, a
            `hf_farms.pruning.methods.Statistic`; required with `score`.
        search: import path of a function that measures pruned models on selection data, as
            `hf_farms.search.auto:search_auto`; required if `needs` is "losses", else not allowed.
        spread: default of the option `spread`, for an entry that lists it among `options`; None for a mixture, whose
            parts have their own.
        even: every block gets the same sparsity, which a fixed pattern N:M requires.
        sentence_if_even: Markdown for the card instead of `sentence`, if all blocks got the same sparsity.
        sentence_if_stopped: the same, if a time limit ended the search; "" for a search without one.
        citation: BibTeX.
    """

    score: str | None = None
    statistic: str | None = None
    search: str | None = None
    spread: float | None = 0.1
    even: bool = False
    sentence_if_even: str = "Every block has the same sparsity."
    sentence_if_stopped: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs == "gradients":
            raise ValueError(
                "needs must be nothing, windows, matrix, activations or losses for an allocation, got 'gradients'."
            )
        for field, needs in {"score": "activations", "statistic": "activations", "search": "losses"}.items():
            path = getattr(self, field)
            if (path is not None) != (self.needs == needs):
                raise ValueError(
                    f"{field} must be given exactly where needs is {needs!r}, got {path!r} for {self.needs!r}."
                )
            if path is not None:
                check_path(field, path)

    @property
    def parts(self) -> Mapping[str, float]:
        """Names and weights of the allocations that a mixture is made of; empty for any other."""
        return {}

    @property
    def needs_activations(self) -> bool:
        """Whether it is planned on scores that are measured on calibration data."""
        return self.needs == "activations"

    @property
    def needs_spectra(self) -> bool:
        """Whether it is planned on a spectral report."""
        return self.needs in ("windows", "matrix")
