"""Read the text of a local file: plain text, or one column of a table.

The suffix tells the format: a table (`TABLES`), possibly compressed (`COMPRESSED`), else plain text. Other formats are
refused by suffix or content, so that calibration and evaluation only use text.
"""

from __future__ import annotations

import importlib
import io
import stat
from pathlib import Path
from typing import Any

from hf_farms.data.table_rows import ROWS, arrow_rows, reason
from hf_farms.data.text_tables import looks_like, texts_of_rows
from hf_farms.errors import DataError

__all__ = ["is_file_name", "is_table", "read_file", "require_file"]

# Suffix -> the kind of table. Case does not matter.
TABLES = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".jsonlines"), "json"),
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv"},
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
# Suffix -> the module whose `open` unpacks it.
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
# Suffixes of other formats, which are refused even if their content happens to be text.
REFUSED_SUFFIXES = frozenset(
    [
        *(".xls", ".xlsx", ".xlsm", ".xlsb", ".ods", ".numbers", ".psv", ".ssv", ".orc", ".avro", ".dta", ".sav"),
        *(".sas7bdat", ".rds", ".rdata", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".mat", ".pt", ".pth", ".bin"),
        *(".safetensors", ".gguf", ".onnx", ".h5", ".hdf5", ".tfrecord", ".msgpack", ".db", ".sqlite", ".sqlite3"),
        *(".duckdb", ".zip", ".tar", ".tgz", ".zst", ".lz4", ".lzma", ".br", ".z", ".7z", ".rar", ".pdf", ".doc"),
        *(".docx", ".odt", ".rtf", ".pptx", ".epub", ".ipynb", ".har", ".yaml", ".yml", ".xml", ".dbf"),
    ]
)
# First bytes of a file that is not text -> name of its format.
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
FORMATS = "Use plain text, JSON, JSON lines, CSV, TSV, parquet or Arrow; .gz, .bz2 and .xz of these are unpacked."
# The longest name in a message.
SHOWN_CHARACTERS = 300


def is_file_name(source: str) -> bool:
    """Return whether a source can only be the name of a file, and not of a dataset."""
    suffixes = {".txt", *TABLES, *COMPRESSED}
    return source.startswith((".", "/", "~")) or "\0" in source or not suffixes.isdisjoint(_suffixes(Path(source)))


def is_table(path: Path) -> bool:
    """Return whether the suffix is that of a table."""
    return any(end in TABLES for end in _suffixes(path))


def require_file(path: Path) -> None:
    """Refuse a path that is not a regular file or has the suffix of another format, without opening it.

    Raises:
        DataError: the path is missing, a folder, a pipe, a device, or of an unknown format.
    """
    label = _label(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"text must be an existing file, got {label}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"text must be a readable file, got {label} ({reason(error)}).") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"text must be a file or a dataset id, got the folder {label}. Name a file inside it.")
    if not stat.S_ISREG(mode):
        raise DataError(
            f"text must be a regular file, which can be read more than once, got the pipe or device {label}. "
            "Write the text into a file first."
        )
    if any(end in REFUSED_SUFFIXES or ("json" in end and end not in TABLES) for end in _suffixes(path)):
        raise DataError(f"text must be of a known format, got {label}.", hint=FORMATS)


def read_file(path: Path, column: str) -> str:
    """Read the text of a file; rows of a table are joined by an empty line.

    Args:
        path: accepted by `require_file`.
        column: the text column of a table.

    Raises:
        DataError: the file cannot be read, does not match its suffix, or its column is missing or not text.
    """
    label = _label(path)
    kind = next((TABLES[end] for end in _suffixes(path) if end in TABLES), None)
    if kind in ("parquet", "arrow"):
        with _open(path, label) as file:
            return "\n\n".join(texts_of_rows(arrow_rows(file, column, label, parquet=kind == "parquet"), column, label))
    text = _read_utf8(path, label)
    if kind is not None:
        return "\n\n".join(texts_of_rows(ROWS[kind](text, column, label), column, label))
    if kind := looks_like(text, column):
        raise DataError(
            f"text must be plain or have the suffix of its format, got {kind} in {label}. For example, a column is "
            "read from files that end in .jsonl or .csv."
        )
    return text


def _label(path: Path) -> str:
    name = str(path)
    return repr(name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…")


def _suffixes(path: Path) -> list[str]:
    """Return the last suffix in lower case, with the one before it for compressed files."""
    ends = [end.lower() for end in path.suffixes]
    return ends[-2:] if ends and ends[-1] in COMPRESSED else ends[-1:]


def _open(path: Path, label: str) -> Any:
    """Open a file for reading bytes, decompressed."""
    module = COMPRESSED.get(path.suffix.lower())
    try:
        if module is None:
            return path.open("rb")
        with importlib.import_module(module).open(path) as file:
            return io.BytesIO(file.read())
    except MemoryError:
        raise
    except Exception as error:  # each module has its own for truncated or invalid data
        raise DataError(f"text must be a readable file, got {label} ({reason(error)}).") from error


def _read_utf8(path: Path, label: str) -> str:
    """Decode a text file as UTF-8, with Unix line ends and without a byte order mark."""
    try:
        with _open(path, label) as file:
            data: bytes = file.read()
    except OSError as error:
        raise DataError(f"text must be a readable file, got {label} ({reason(error)}).") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fault = f"the byte {data[error.start]:#04x} in line {line} of"
        raise _not_text(data, fault, label) from error
    if "\x00" in text:
        raise _not_text(data, "binary data in", label)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_text(data: bytes, fault: str, label: str) -> DataError:
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    if kind is not None and kind != "UTF-16":
        return DataError(f"text must be readable as UTF-8, got {kind} in {label}.", hint=FORMATS)
    fault = f"{kind} in" if kind else fault
    return DataError(f"text must be readable as UTF-8, got {fault} {label}. Save it as UTF-8.")
