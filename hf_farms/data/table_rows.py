"""Read the rows of tables of text: JSON, JSON lines, CSV, TSV, parquet and Arrow.

Not with the datasets library, whose errors name neither the row nor the line, and which copies every file into a cache.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from hf_farms.errors import DataError

__all__ = ["ROWS", "Rows", "arrow_rows", "check_unique", "missing_column", "parse_json", "reason"]

# Numbered rows, from 1.
Rows = Iterable[tuple[int, Any]]

# The largest number of column names in a message, and of characters of each.
SHOWN_COLUMNS, SHOWN_CHARACTERS = 12, 40


def json_rows(text: str, column: str, label: str) -> Rows:
    """Yield the rows of JSON lines, of a JSON list, or of a single object.

    Raises:
        DataError: the text is not JSON; names the line.
    """

    def unique_column(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if sum(key == column for key, _ in pairs) > 1:
            raise ValueError(f"{column!r} twice in one object")
        return dict(pairs)

    def parse(part: str, line: int) -> Any:
        try:
            return json.loads(part, object_pairs_hook=unique_column)
        except (ValueError, RecursionError) as error:
            line += getattr(error, "lineno", 1) - 1
            detail = getattr(error, "msg", None) or reason(error)
            raise DataError(
                f"table must be JSON, got an error in line {line} of {label} ({detail}). Repair it."
            ) from error

    # Not splitlines(), which also splits at separators that JSON allows inside a string.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and (lines[0][1].lstrip().startswith("[") or (len(lines) > 1 and parse_json(lines[0][1]) is None)):
        document = parse(text, 1)
        yield from enumerate(document if isinstance(document, list) else [document], 1)
        return
    for row, (number, line) in enumerate(lines, 1):
        yield row, parse(line, number)


def csv_rows(text: str, column: str, label: str, *, delimiter: str) -> Rows:
    """Return the rows of a table with a header line. Every field is text, also `NA`.

    Raises:
        DataError: a line has more or fewer fields than the header, quotation marks are not closed, or the column has
            only numbers.
    """
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] | None = None
    for line, fields in _csv_lines(text, delimiter, label):
        if header is None:
            header = fields
            check_unique(header, column, label)
            continue
        if len(fields) != len(header):
            raise DataError(
                f"lines must have as many fields as the first one ({len(header)}), got {len(fields)} in line {line} of "
                f"{label}. Fields with {'tabs' if delimiter != ',' else 'commas'} in them need quotation marks."
            )
        rows.append((len(rows) + 1, dict(zip(header, fields, strict=True))))
    if rows and all(_is_number(row.get(column, "")) for _, row in rows):
        raise DataError(f"column must hold text, got numbers only in {column!r} of {label}. Name another column.")
    return rows


def _csv_lines(text: str, delimiter: str, label: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row with the number of its first line; skip empty lines."""
    # Texts may be longer than the default limit of 128 KiB per field. The limit is global.
    limit, start = csv.field_size_limit(min(sys.maxsize, 2**31 - 1)), 1
    try:
        # Strict, because an unclosed quotation mark would swallow the rest of the file.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"table must be CSV, got an error in line {start} of {label} ({error}). Repair it.") from error
    finally:
        csv.field_size_limit(limit)


# Kind of table -> function of the file's text, the column (for checks) and the file's name in errors.
ROWS: dict[str, Callable[[str, str, str], Rows]] = {
    "json": json_rows,
    "csv": partial(csv_rows, delimiter=","),
    "tsv": partial(csv_rows, delimiter="\t"),
}


def arrow_rows(file: Any, column: str, label: str, *, parquet: bool) -> Rows:
    """Return the rows of a parquet file, an Arrow file or an Arrow stream, with a single column.

    Args:
        file: a binary file object.
        column: the only column that is returned.
        label: the file's name in errors.
        parquet: whether the file is parquet; else Arrow.

    Raises:
        DataError: the file has another format or is damaged, or the column is missing or not unique.
    """
    try:
        names, num_rows, values = (_parquet_column if parquet else _arrow_column)(file, column)
    except Exception as error:  # pyarrow raises its own, and Python's
        kind = "parquet" if parquet else "Arrow"
        raise DataError(f"table must be {kind}, got {label}, which cannot be read ({reason(error)}).") from error
    check_unique(names, column, label)
    if num_rows and values is None:
        raise missing_column(names, column, label)
    return [(number, {column: value}) for number, value in enumerate(values or [], 1)]


def _parquet_column(file: Any, column: str) -> tuple[list[str], int, list[Any] | None]:
    from pyarrow.parquet import ParquetFile  # installed with datasets

    table = ParquetFile(file)
    names = list(table.schema_arrow.names)
    values = table.read(columns=[column])[column].to_pylist() if names.count(column) == 1 else None
    return names, table.metadata.num_rows, values


def _arrow_column(file: Any, column: str) -> tuple[list[str], int, list[Any] | None]:
    from pyarrow import ipc

    # Besides the file format there is the stream format, which datasets writes.
    is_stream = file.read(6) != b"ARROW1"
    file.seek(0)
    table = (ipc.open_stream(file) if is_stream else ipc.open_file(file)).read_all()
    names = list(table.schema.names)
    return names, table.num_rows, table[column].to_pylist() if names.count(column) == 1 else None


def check_unique(names: Sequence[str], column: str, label: str) -> None:
    """Refuse a table in which the column occurs twice."""
    if list(names).count(column) > 1:
        raise DataError(f"column must be unique, got {column!r} twice in {label}. Rename one of them.")


def missing_column(names: Sequence[str], column: str, label: str) -> DataError:
    """Return the error for a column that is missing, with the columns that exist."""
    listed = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…" for name in names]
    more = f" and {len(listed) - SHOWN_COLUMNS} more" if len(listed) > SHOWN_COLUMNS else ""
    columns = ", ".join(listed[:SHOWN_COLUMNS]) or "(no columns)"
    return DataError(f"column must be one of {columns}{more}, got {column!r} in {label}.")


def parse_json(text: str) -> Any:
    """Parse JSON; None if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def reason(error: BaseException) -> str:
    """Return the message of an error in one line."""
    message = getattr(error, "strerror", None) or str(error).strip().split("\n")[0].rstrip(".")
    return message or type(error).__name__


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
