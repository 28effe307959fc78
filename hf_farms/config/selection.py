"""Options of the text that allocations are chosen on."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.config.checks import check, check_fields

__all__ = ["SelectionConfig"]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The text that a search chooses on: a first half scores plans, a second half accepts recovered blocks.

    It must be neither the calibration text nor the evaluation text.

    Attributes:
        source: "speeches" (public-domain text inside the package, its part that is used for nothing else), a file or a
            dataset, as for calibration. Choose text of the kind that the model will be used on.
        column: column that holds the text, for tables and datasets.
        subset: configuration of a Hub dataset. None takes the default one.
        split: split of a Hub dataset. Use one that neither calibrates nor evaluates.
        sequence_length: tokens in each sequence, lowered to the context length of the model. Lower it for a short text:
            each half needs two sequences.
    """

    source: str = "speeches"
    column: str = "text"
    subset: str | None = None
    split: str = "validation"
    sequence_length: int = 512

    def __post_init__(self) -> None:
        for name, value, constraint in (
            ("selection source", self.source, "'speeches', a file or a dataset id"),
            ("column", self.column, "the name of a column"),
            ("split", self.split, "the name of a split"),
        ):
            check(isinstance(value, str) and value.strip() != "", name, constraint, value)
        check(self.source != "self", "selection source", "a text", self.source, "Give 'speeches', a file or a dataset.")
        check(
            isinstance(self.sequence_length, int) and self.sequence_length >= 2,
            "sequence_length",
            "an integer of at least 2",
            self.sequence_length,
        )
        check_fields(self)
