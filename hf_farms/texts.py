"""Text for calibration and evaluation: inside the package, in a file, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from hf_farms.demo import demo_text
from hf_farms.errors import DataError

__all__ = ["BUILT_IN", "Tokenizer", "check_source", "read_text", "tokenize"]

# The name under which the text inside the package is asked for.
BUILT_IN = "speeches"
TABLES = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
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
        source: "speeches", a text, JSON, JSONL or parquet file, or the id of a Hub dataset.
        column: the column that holds the text of a table or dataset.
        subset: the configuration of a Hub dataset.
        split: of a Hub dataset; of the built-in text, "train" is for calibration and anything else for evaluation.

    Raises:
        DataError: no such file or dataset, no such column, not text, or nothing in it.
    """
    check_source(source)
    path = Path(source)
    if source == BUILT_IN:
        text = demo_text("calibration" if split == "train" else "test").read_text(encoding="utf-8")
    elif path.suffix in TABLES:
        text = _read_rows(source, column, TABLES[path.suffix], data_files=source, split="train")
    elif path.exists():
        text = _read_plain(path)
    else:
        text = _read_rows(source, column, source, name=subset, split=split, streaming=True)
    if not text.strip():
        raise DataError(f"text must not be empty, got {source!r} without any.")
    return text


def check_source(source: str) -> None:
    """Refuse a source that cannot be there, before any expensive work; Hub datasets are left for later.

    Raises:
        DataError: a folder, or a file that does not exist.
    """
    path = Path(source)
    if source == BUILT_IN:
        return
    if path.is_dir():
        raise DataError(f"text must be a file or a dataset id, got the folder {source!r}. Name a file inside it.")
    if path.suffix in (*TABLES, ".txt") or source.startswith((".", "/", "~")):
        _require_file(path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"text must be an existing file, got {str(path)!r}. Check the path.")


def _read_plain(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text must be readable as UTF-8, got {str(path)!r} ({error}).") from error


def _read_rows(source: str, column: str, builder: str, **options: Any) -> str:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        rows = load_dataset(builder, trust_remote_code=False, **options)
        if options.get("streaming"):
            rows = list(rows.take(MAX_HUB_ROWS))
        names = list(rows[0]) if len(rows) else []
        values = [row[column] for row in rows] if column in names else None
    except Exception as error:  # datasets raises its own, pyarrow's, fsspec's and the Hub client's
        detail = str(error).strip().split("\n")[0]
        raise DataError(
            f"text must be a readable file or dataset, got {source!r} ({type(error).__name__}: {detail}).",
            hint="Name a local text file, or `speeches` for the text inside the package.",
        ) from error
    if values is None:
        raise DataError(f"column must be one of {', '.join(names) or '(no rows)'}, got {column!r} in {source!r}.")
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"column must hold text, got {type(values[0]).__name__} in {column!r} of {source!r}.")
    return "\n\n".join(values)


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of the whole text, as the tokenizer does it by default, without its warning about long texts."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids
