"""Tables of text: their rows, and the texts in a column of them.

The csv and json modules and pyarrow read them, and not the datasets library, which names neither the row nor the line
that is wrong, and copies every file into a cache.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from hf_farms.errors import DataError

__all__ = ["ROWS", "arrow_rows", "looks_like", "reason", "texts_of_rows"]

# Rows with their numbers, from 1.
Rows = Iterable[tuple[int, Any]]

KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
KINDS |= {str: "a text", bytes: "bytes"}
# Enough names of columns for a sentence, and enough of each.
SHOWN_COLUMNS, SHOWN_CHARACTERS = 12, 40


def texts_of_rows(rows: Rows, column: str, shown: str) -> list[str]:
    """The texts of a column.

    Args:
        rows: with their numbers.
        column: which.
        shown: where they are from, for errors.

    Raises:
        DataError: no rows, no such column, or a row without text in it.
    """
    texts: list[str] = []
    names: dict[str, None] = {}
    without = None
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"rows must be objects with columns, got {_kind(row)} in row {number} of {shown}.")
        if column not in row:
            names |= dict.fromkeys(row)
            without = without or number
            continue
        value = row[column]
        if not isinstance(value, str):
            raise DataError(
                f"column must hold text, got {_kind(value)} in row {number} of {column!r} in {shown}. Take out what is "
                "no text, or name another column."
            )
        if not _is_unicode(value):
            raise DataError(
                f"column must hold text, got half of a character (a lone surrogate) in row {number} of {column!r} in "
                f"{shown}. Take it out."
            )
        texts.append(value)
    if texts and without is None:
        return texts
    if texts:
        raise DataError(f"column must hold text, got no {column!r} in row {without} of {shown}. Take out that row.")
    if without is None:
        raise DataError(f"table must have rows, got none in {shown}.")
    raise _missing(list(names), column, shown)


def json_rows(text: str, column: str, shown: str) -> Rows:
    """Rows of JSON lines, of a list, or of one object alone.

    Raises:
        DataError: not JSON; says in which line.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if sum(key == column for key, _ in found) > 1:
            raise ValueError(f"{column!r} twice in one object")
        return dict(found)

    def parse(part: str, line: int) -> Any:
        try:
            return json.loads(part, object_pairs_hook=pairs)
        except (ValueError, RecursionError) as error:
            line += getattr(error, "lineno", 1) - 1
            why = getattr(error, "msg", None) or reason(error)
            raise DataError(
                f"table must be JSON, got an error in line {line} of {shown} ({why}). Repair it."
            ) from error

    # Not splitlines(): that splits at separators which JSON may have inside a text.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and (lines[0][1].lstrip().startswith("[") or (len(lines) > 1 and _parsed(lines[0][1]) is None)):
        whole = parse(text, 1)
        yield from enumerate(whole if isinstance(whole, list) else [whole], 1)
        return
    for row, (number, line) in enumerate(lines, 1):
        yield row, parse(line, number)


def csv_rows(text: str, column: str, shown: str, *, delimiter: str) -> Rows:
    """Rows of a table with the names of its columns in the first line. Every field is text, `NA` too.

    Raises:
        DataError: a line with more or fewer fields than the first, or with quotation marks that do not fit; or a
            column of numbers only.
    """
    found: list[tuple[int, dict[str, str]]] = []
    header: list[str] | None = None
    for line, fields in _csv_lines(text, delimiter, shown):
        if header is None:
            header = fields
            _check_once(header, column, shown)
            continue
        if len(fields) != len(header):
            raise DataError(
                f"lines must have as many fields as the first one ({len(header)}), got {len(fields)} in line {line} of "
                f"{shown}. Fields with {'tabs' if delimiter != ',' else 'commas'} in them need quotation marks."
            )
        found.append((len(found) + 1, dict(zip(header, fields, strict=True))))
    if found and all(_is_number(row.get(column, "")) for _, row in found):
        raise DataError(f"column must hold text, got numbers only in {column!r} of {shown}. Name another column.")
    return found


def _csv_lines(text: str, delimiter: str, shown: str) -> Iterator[tuple[int, list[str]]]:
    """Fields, with the number of the line that they start in; empty lines are left out."""
    # Texts are longer than the 128 KiB that a field may have. The limit is one of the process.
    limit, start = csv.field_size_limit(min(sys.maxsize, 2**31 - 1)), 1
    try:
        # Strict: a quotation mark that never ends would swallow all that follows.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"table must be CSV, got an error in line {start} of {shown} ({error}). Repair it.") from error
    finally:
        csv.field_size_limit(limit)


# Kind of table -> its rows, from the text of a file, a column that must be there once, and how the file is called.
ROWS: dict[str, Callable[[str, str, str], Rows]] = {
    "json": json_rows,
    "csv": partial(csv_rows, delimiter=","),
    "tsv": partial(csv_rows, delimiter="\t"),
}


def arrow_rows(file: Any, column: str, shown: str, *, parquet: bool) -> Rows:
    """Rows of a parquet file or an Arrow file or stream, with this column only, which is all that is kept.

    Args:
        file: opened for reading bytes.
        column: which.
        shown: how the file is called.
        parquet: whether it is one.

    Raises:
        DataError: it is something else, or damaged.
    """
    try:
        names, count, values = (_parquet_column if parquet else _arrow_column)(file, column)
    except Exception as error:  # pyarrow raises its own, and Python's
        kind = "parquet" if parquet else "Arrow"
        raise DataError(f"table must be {kind}, got {shown}, which is not readable so ({reason(error)}).") from error
    _check_once(names, column, shown)
    if count and values is None:
        raise _missing(names, column, shown)
    return [(number, {column: value}) for number, value in enumerate(values or [], 1)]


def _parquet_column(file: Any, column: str) -> tuple[list[str], int, list[Any] | None]:
    from pyarrow.parquet import ParquetFile  # which comes with datasets

    table = ParquetFile(file)
    names = list(table.schema_arrow.names)
    values = table.read(columns=[column])[column].to_pylist() if names.count(column) == 1 else None
    return names, table.metadata.num_rows, values


def _arrow_column(file: Any, column: str) -> tuple[list[str], int, list[Any] | None]:
    from pyarrow import ipc

    # Beside files there are streams, which is what datasets writes.
    stream = file.read(6) != b"ARROW1"
    file.seek(0)
    table = (ipc.open_stream(file) if stream else ipc.open_file(file)).read_all()
    names = list(table.schema.names)
    return names, table.num_rows, table[column].to_pylist() if names.count(column) == 1 else None


def looks_like(text: str, column: str) -> str | None:
    """The kind of table that a plain text is by what is in it; None: it is plain.

    It is JSON where its first lines are objects, or all of it is one or a list of some; a table of fields where its
    first line names the column among others, as names are, and the second has fields too.
    """
    lines = list(islice((line.strip() for line in io.StringIO(text) if line.strip()), 5))
    if len(lines) > 1 and any(_is_header(lines[0].split(mark), column) and mark in lines[1] for mark in ",;\t|"):
        return "a table"
    if not lines or lines[0][0] not in "{[":
        return None
    if all(isinstance(_parsed(line), dict) for line in lines):
        return "JSON"
    whole = _parsed(text)
    rows = whole if isinstance(whole, list) else [whole]
    return "JSON" if any(isinstance(row, dict) for row in rows) else None


def _is_header(fields: Sequence[str], column: str) -> bool:
    return len(fields) > 1 and column in fields and all(field.isprintable() and " " not in field for field in fields)


def reason(error: BaseException) -> str:
    """Why, in one line."""
    said = getattr(error, "strerror", None) or str(error).strip().split("\n")[0].rstrip(".")
    return said or type(error).__name__


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _missing(names: Sequence[str], column: str, shown: str) -> DataError:
    listed = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}…" for name in names]
    more = f" and {len(listed) - SHOWN_COLUMNS} more" if len(listed) > SHOWN_COLUMNS else ""
    there = ", ".join(listed[:SHOWN_COLUMNS]) or "(no columns)"
    return DataError(f"column must be one of {there}{more}, got {column!r} in {shown}.")


def _check_once(names: Sequence[str], column: str, shown: str) -> None:
    if list(names).count(column) > 1:
        raise DataError(f"column must be there once, got {column!r} twice in {shown}. Rename one of them.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind(value: Any) -> str:
    return KINDS.get(type(value)) or f"a value of type {type(value).__name__}"
