"""Options of the texts that calibrate, choose and evaluate."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hf_farms.config.checks import check, check_fields, is_count, is_seed
from hf_farms.config.renamed import absent_before

__all__ = ["CalibrationConfig", "EvaluationConfig", "SelectionConfig"]


@absent_before(num_continuations=0)
@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The sequences that activations are measured on.

    Attributes:
        source: "speeches" (public-domain English text inside the package), "self" (sampled from the model itself, for
            other languages), a text file, a table (JSON, JSON lines, CSV, TSV, parquet, Arrow; each also as .gz, .bz2
            or .xz), or the id of a dataset on the Hub. Text of the kind that the model will be used on gives the best
            result.
        column: column that holds the text, for tables and datasets.
        subset: configuration of a Hub dataset ("en" of allenai/c4). None takes the default one.
        split: split of a Hub dataset. Keep it apart from the split that you evaluate on.
        num_sequences: number of sequences. The papers use 128; time and memory for hidden states grow with it.
        sequence_length: tokens in each, lowered to the context length of the model. Longer sequences cost time and
            memory in proportion.
        num_continuations: sequences beside them that the dense model writes, each from a few tokens of a passage on.
            None: in `prune_checkpoint` with a recovery three of each, up to 128 sequences in all, if the model is in
            memory and generates text; else 0. Writing takes minutes on a CPU: set it to 0 where that counts, and give
            more text of the kind that the model will be used on where you have it.
        seed: of the choice of passages, or of the sampling. Change it to see how much the choice of data matters.
    """

    source: str = "speeches"
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    num_sequences: int = 32
    sequence_length: int = 512
    num_continuations: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_text("calibration source", self.source, "'speeches', 'self', a file or a dataset id")
        _check_place(self.column, self.split)
        check(is_count(self.num_sequences), "num_sequences", "a positive integer", self.num_sequences)
        _check_length("sequence_length", self.sequence_length)
        check(
            self.num_continuations is None or is_seed(self.num_continuations),
            "num_continuations",
            "None or an integer of at least 0",
            self.num_continuations,
        )
        check(is_seed(self.seed), "seed", "an integer of at least 0", self.seed)
        check_fields(self)

    def settled(self) -> CalibrationConfig:
        """Return the config with 0 in place of the default number of continuations, for work that writes none."""
        return replace(self, num_continuations=self.num_continuations or 0)

    @property
    def generates(self) -> bool:
        """Whether the model writes sequences; those of a default that is not decided yet do not count."""
        return self.source == "self" or self.total_sequences > self.num_sequences

    @property
    def total_sequences(self) -> int:
        """Number of sequences with continuations; those of a default that is not decided yet do not count."""
        return self.num_sequences + ((self.num_continuations or 0) if self.source != "self" else 0)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The text that perplexity is measured on.

    Attributes:
        source: "speeches" (held-out public-domain text inside the package), a file or a dataset, as for calibration.
            None skips the evaluation and saves a pass over the text for each model.
        column: column that holds the text, for tables and datasets.
        subset: configuration of a Hub dataset. None takes the default one.
        split: split of a Hub dataset. Use one that the model was neither calibrated nor trained on.
        context_length: tokens in a window, lowered to the context length of the model. Perplexities of different
            lengths do not compare; the papers use 2048.
        max_windows: number of windows from the start of the text. Fewer are faster and less exact; None takes all.
    """

    source: str | None = "speeches"
    column: str = "text"
    subset: str | None = None
    split: str = "test"
    context_length: int = 512
    max_windows: int | None = 40

    def __post_init__(self) -> None:
        _check_length("context_length", self.context_length)
        check(
            self.max_windows is None or is_count(self.max_windows),
            "max_windows",
            "None or a positive integer",
            self.max_windows,
        )
        if self.source is not None:
            _check_text("evaluation source", self.source, "'speeches', a file, a dataset id or None")
        _check_place(self.column, self.split)
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The text of choices: a search scores plans on its first half, a recovery keeps what is better on its second.

    On the second half `prune_checkpoint` also compares the plan of a search with uniform sparsity after a recovery.

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
        _check_text("selection source", self.source, "'speeches', a file or a dataset id")
        check(self.source != "self", "selection source", "a text", self.source, "Give 'speeches', a file or a dataset.")
        _check_place(self.column, self.split)
        _check_length("sequence_length", self.sequence_length)
        check_fields(self)


def _check_text(name: str, value: object, constraint: str) -> None:
    check(isinstance(value, str) and value.strip() != "", name, constraint, value)


def _check_place(column: object, split: object) -> None:
    _check_text("column", column, "the name of a column")
    _check_text("split", split, "the name of a split")


def _check_length(name: str, value: object) -> None:
    check(isinstance(value, int) and value >= 2, name, "an integer of at least 2", value)
