"""Read text for calibration and evaluation: built in, from a file, or from a dataset on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from hf_farms.config import CalibrationConfig
from hf_farms.config.effect_inputs import TextKind
from hf_farms.data.table_rows import reason
from hf_farms.data.text_files import is_file_name, is_table, read_file, require_file
from hf_farms.data.text_tables import texts_of_rows
from hf_farms.demo import Split, demo_text
from hf_farms.errors import DataError, HubError
from hf_farms.hub.errors import cache_error, known_error
from hf_farms.hub.request_retries import retried_requests

__all__ = ["BUILT_IN", "Tokenizer", "check_source", "check_text", "named_text", "read_text", "text_kind", "tokenize"]

# The name of the built-in text.
BUILT_IN = "speeches"
# Limit on the rows of a Hub dataset, which may be far larger than needed.
MAX_HUB_ROWS = 20_000


class Tokenizer(Protocol):
    """The interface of a transformers tokenizer that hf-farms uses."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any:
        """Return the token ids of a text, as `{"input_ids": [...]}`."""


def read_text(
    source: str,
    *,
    column: str = CalibrationConfig.column,
    subset: str | None = CalibrationConfig.subset,
    split: str = CalibrationConfig.split,
) -> str:
    """Read a source as one long text; rows of a table or dataset are joined by an empty line.

    Args:
        source: "speeches", a text file, a table (JSON, JSON lines, CSV, TSV, parquet, Arrow; each also as .gz, .bz2 or
            .xz), or the id of a Hub dataset.
        column: the text column of a table or dataset.
        subset: the configuration of a Hub dataset.
        split: of a Hub dataset; of the built-in text, "train" is for calibration, "select" for the choice of
            allocations, and any other for evaluation.

    Raises:
        DataError: the file, dataset or column is missing, is not text, or is empty.
        HubError: the Hub could not be reached.
        OutputError: the Hub's cache is not writable.
    """
    check_source(source)
    if source == BUILT_IN:
        part: Split = "calibration" if split == "train" else "select" if split == "select" else "test"
        text = demo_text(part).read_text(encoding="utf-8")
    elif _is_local(source):
        text = read_file(Path(source), column)
    else:
        text = "\n\n".join(_hub_texts(source, column, subset, split))
    if not text.strip():
        raise DataError(f"text must not be empty, got {source!r} without any.")
    return text


def check_source(source: str) -> None:
    """Refuse a local file that is missing or of the wrong kind, without reading it.

    Raises:
        DataError: the file is missing, a folder, a pipe or of an unknown format.
    """
    if source != BUILT_IN and _is_local(source):
        require_file(Path(source))


def check_text(source: str, *, column: str = "text") -> None:
    """Read a local text to find errors before expensive work; datasets on the Hub are not checked.

    Args:
        source: as for `read_text`.
        column: as for `read_text`.

    Raises:
        DataError: as `read_text`.
    """
    check_source(source)
    if source != BUILT_IN and _is_local(source):
        read_text(source, column=column)


@contextmanager
def named_text(name: str) -> Iterator[None]:
    """Say in errors which text is wrong: "text must be ..." becomes "calibration text must be ...".

    Args:
        name: "calibration", "evaluation" or "selection".
    """
    try:
        yield
    except DataError as error:
        error.args = (f"{name} {error}",)
        raise


def text_kind(source: str | None) -> TextKind | None:
    """Return where a text is read from; None: there is no text."""
    if source is None:
        return None
    if source == "self":
        return "self"
    if source == BUILT_IN:
        return "built-in"
    if not _is_local(source):
        return "dataset"
    return "table" if is_table(Path(source)) else "file"


def _is_local(source: str) -> bool:
    """Return whether a source is a file, or can only be the name of one."""
    try:
        Path(source).stat()
    except (FileNotFoundError, NotADirectoryError):
        return is_file_name(source)
    except (OSError, ValueError):  # no valid file name, which is reported when the file is opened
        pass
    return True


def _hub_texts(source: str, column: str, subset: str | None, split: str) -> list[str]:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        with retried_requests():
            stream = load_dataset(source, name=subset, split=split, streaming=True)
            rows = list(stream.take(MAX_HUB_ROWS))
    except Exception as error:  # datasets raises its own, pyarrow's, fsspec's and the Hub client's
        if (not_writable := cache_error(error)) is not None:
            raise not_writable from error
        # datasets hides errors of the network and the Hub behind its own.
        if isinstance(known := known_error(error, source), HubError):
            raise known from error
        # DatasetGenerationError itself carries no information.
        cause = (type(error).__name__.startswith("DatasetGeneration") and error.__cause__) or error
        raise DataError(
            f"text must be a readable file or dataset, got {source!r} ({type(cause).__name__}: {reason(cause)}).",
            hint="Name a local text file, or `speeches` for the text inside the package.",
        ) from error
    return texts_of_rows(enumerate(rows, 1), column, repr(source))


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a whole text, with the tokenizer's default settings and no warning about its length."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids
