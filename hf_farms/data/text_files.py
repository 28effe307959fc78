"""A file on this machine -> its text: a plain text, or one column of a table.

What a file is, its name says: a table (`TABLES`), compressed or not (`COMPRESSED`), else a plain text. What is neither
is refused, by its name or by its bytes, so that nothing but text is calibrated and measured on.
"""

from __future__ import annotations

import importlib
import io
import stat
from pathlib import Path
from typing import Any

from hf_farms.data.text_tables import ROWS, arrow_rows, looks_like, reason, texts_of_rows
from hf_farms.errors import DataError

__all__ = ["is_file_name", "read_file", "require_file"]

# Suffix -> the kind of table. Upper and lower case are the same.
TABLES = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".jsonlines"), "json"),
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv"},
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
# Suffix -> the module whose `open` unpacks it.
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
# Names of what is neither table nor text, also where its bytes happen to be text.
OTHERS = frozenset(
    [
        *(".xls", ".xlsx", ".xlsm", ".xlsb", ".ods", ".numbers", ".psv", ".ssv", ".orc", ".avro", ".dta", ".sav"),
        *(".sas7bdat", ".rds", ".rdata", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".mat", ".pt", ".pth", ".bin"),
        *(".safetensors", ".gguf", ".onnx", ".h5", ".hdf5", ".tfrecord", ".msgpack", ".db", ".sqlite", ".sqlite3"),
        *(".duckdb", ".zip", ".tar", ".tgz", ".zst", ".lz4", ".lzma", ".br", ".z", ".7z", ".rar", ".pdf", ".doc"),
        *(".docx", ".odt", ".rtf", ".pptx", ".epub", ".ipynb", ".har", ".yaml", ".yml", ".xml", ".dbf"),
    ]
)
# First bytes of what is no text -> how it is called.
MAGIC = {
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet table",
    b"ARROW1": "an Arrow table",
    b"%PDF-": "a PDF",
    b"SQLite format 3": "a database",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
KNOWN = "Use plain text, JSON, JSON lines, CSV, TSV, parquet or Arrow; .gz, .bz2 and .xz of these are unpacked."
# So much of a name is shown.
SHOWN_CHARACTERS = 300


def is_file_name(source: str) -> bool:
    """Whether this can only be the name of a file, and not that of a dataset."""
    known = {".txt", *TABLES, *COMPRESSED}
    return source.startswith((".", "/", "~")) or "\0" in source or not known.isdisjoint(_suffixes(Path(source)))


def require_file(path: Path) -> None:
    """Refuse what is no regular file, and what cannot be text by its name, without opening it: a pipe would wait.

    Raises:
        DataError: it is nothing, a folder, a pipe or device, or of a kind that is not read.
    """
    shown = _shown(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"text must be an existing file, got {shown}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"text must be a readable file, got {shown} ({reason(error)}).") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"text must be a file or a dataset id, got the folder {shown}. Name a file inside it.")
    if not stat.S_ISREG(mode):
        raise DataError(
            f"text must be a regular file, which can be read more than once, got the pipe or device {shown}. "
            "Write the text into a file first."
        )
    if any(end in OTHERS or ("json" in end and end not in TABLES) for end in _suffixes(path)):
        raise DataError(f"text must be of a kind that is known, got {shown}.", hint=KNOWN)


def read_file(path: Path, column: str) -> str:
    """The text of a file; rows of a table are joined by an empty line.

    Args:
        path: as `require_file` lets it through.
        column: of a table.

    Raises:
        DataError: not readable, not what its name says, no such column, or something else than text in it.
    """
    shown = _shown(path)
    kind = next((TABLES[end] for end in _suffixes(path) if end in TABLES), None)
    if kind in ("parquet", "arrow"):
        with _opened(path, shown) as file:
            return "\n\n".join(texts_of_rows(arrow_rows(file, column, shown, parquet=kind == "parquet"), column, shown))
    text = _decoded(path, shown)
    if kind is not None:
        return "\n\n".join(texts_of_rows(ROWS[kind](text, column, shown), column, shown))
    if found := looks_like(text, column):
        raise DataError(
            f"text must be plain or have the suffix of its kind, got {found} in {shown}. With .jsonl or .csv, say, a "
            "column of it is read."
        )
    return text


def _shown(path: Path) -> str:
    name = str(path)
    return repr(name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…")


def _suffixes(path: Path) -> list[str]:
    """The last suffix, and the one before a compression."""
    ends = [end.lower() for end in path.suffixes]
    return ends[-2:] if ends and ends[-1] in COMPRESSED else ends[-1:]


def _opened(path: Path, shown: str) -> Any:
    """The file, or what is packed in it."""
    module = COMPRESSED.get(path.suffix.lower())
    try:
        if module is None:
            return path.open("rb")
        with importlib.import_module(module).open(path) as file:
            return io.BytesIO(file.read())
    except MemoryError:
        raise
    except Exception as error:  # each module has its own for what is cut off, or something else
        raise DataError(f"text must be a readable file, got {shown} ({reason(error)}).") from error


def _decoded(path: Path, shown: str) -> str:
    """The characters of a text, with line ends as Python has them and without a byte order mark."""
    try:
        with _opened(path, shown) as file:
            data: bytes = file.read()
    except OSError as error:
        raise DataError(f"text must be a readable file, got {shown} ({reason(error)}).") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"the byte {data[error.start]:#04x} in line {line} of"
        raise _not_text(data, found, shown) from error
    if "\x00" in text:
        raise _not_text(data, "binary data in", shown)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_text(data: bytes, found: str, shown: str) -> DataError:
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    if kind is not None and kind != "UTF-16":
        return DataError(f"text must be readable as UTF-8, got {kind} in {shown}.", hint=KNOWN)
    found = f"{kind} in" if kind else found
    return DataError(f"text must be readable as UTF-8, got {found} {shown}. Save it as UTF-8.")
