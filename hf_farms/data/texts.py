"""Text for calibration and evaluation: inside the package, in a file, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from hf_farms.data.text_files import is_file_name, read_file, require_file
from hf_farms.data.text_tables import reason, texts_of_rows
from hf_farms.demo import demo_text
from hf_farms.errors import DataError, HubError
from hf_farms.hub.errors import cache_error, known_error
from hf_farms.hub.request_retries import retried_requests

__all__ = ["BUILT_IN", "Tokenizer", "check_source", "check_text", "read_text", "tokenize"]

# The name under which the text inside the package is asked for.
BUILT_IN = "speeches"
# Rows read from a Hub dataset, which may be far larger than anyone needs here.
MAX_HUB_ROWS = 20_000


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any:
        """Token ids of a text."""


def read_text(source: str, *, column: str = "text", subset: str | None = None, split: str = "train") -> str:
    """One long text; rows of a table or dataset are joined by an empty line.

    Args:
        source: "speeches", a text file, a table (JSON, JSON lines, CSV, TSV, parquet, Arrow; each also as .gz, .bz2 or
            .xz), or the id of a Hub dataset.
        column: the column that holds the text of a table or dataset.
        subset: the configuration of a Hub dataset.
        split: of a Hub dataset; of the built-in text, "train" is for calibration and anything else for evaluation.

    Raises:
        DataError: no such file or dataset, no such column, not text, or nothing in it.
    """
    check_source(source)
    if source == BUILT_IN:
        text = demo_text("calibration" if split == "train" else "test").read_text(encoding="utf-8")
    elif _is_local(source):
        text = read_file(Path(source), column)
    else:
        text = "\n\n".join(_hub_texts(source, column, subset, split))
    if not text.strip():
        raise DataError(f"text must not be empty, got {source!r} without any.")
    return text


def check_source(source: str) -> None:
    """Refuse a source that cannot be there, before any expensive work and without reading it.

    Raises:
        DataError: a file that does not exist, a folder, a pipe, a file of a kind that is not read.
    """
    if source != BUILT_IN and _is_local(source):
        require_file(Path(source))


def check_text(source: str, *, column: str = "text") -> None:
    """Refuse a text that cannot be read, before any expensive work; Hub datasets are left for later.

    Args:
        source: as for `read_text`.
        column: as for `read_text`.

    Raises:
        DataError: as `read_text`.
    """
    check_source(source)
    if source != BUILT_IN and _is_local(source):
        read_text(source, column=column)


def _is_local(source: str) -> bool:
    """Whether it is a file, or can be nothing else."""
    try:
        return Path(source).exists() or is_file_name(source)
    except (OSError, ValueError):  # a name that no file can have
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
        if (cache := cache_error(error)) is not None:
            raise cache from error
        # A broken network, a Hub that refuses: what datasets makes of it names neither.
        if isinstance(known := known_error(error, source), HubError):
            raise known from error
        # The outermost of its own only says that there was another.
        cause = (type(error).__name__.startswith("DatasetGeneration") and error.__cause__) or error
        raise DataError(
            f"text must be a readable file or dataset, got {source!r} ({type(cause).__name__}: {reason(cause)}).",
            hint="Name a local text file, or `speeches` for the text inside the package.",
        ) from error
    return texts_of_rows(enumerate(rows, 1), column, repr(source))


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of the whole text, as the tokenizer does it by default, without its warning about long texts."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids
