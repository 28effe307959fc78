"""Tables of text: take the texts of one column, and recognize a table in a plain text file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from hf_farms.data.table_rows import Rows, missing_column, parse_json
from hf_farms.errors import DataError

__all__ = ["looks_like", "texts_of_rows"]

KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
KINDS |= {str: "a text", bytes: "bytes"}


def texts_of_rows(rows: Rows, column: str, label: str) -> list[str]:
    """Return the texts of a column.

    Args:
        rows: numbered from 1.
        column: the name of the column.
        label: the name of the file or dataset in errors.

    Raises:
        DataError: there are no rows, the column is missing, or a row has no text in it.
    """
    texts: list[str] = []
    names: dict[str, None] = {}
    row_without_column = None
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"rows must be objects with columns, got {_kind(row)} in row {number} of {label}.")
        if column not in row:
            names |= dict.fromkeys(row)
            row_without_column = row_without_column or number
            continue
        value = row[column]
        if not isinstance(value, str):
            raise DataError(
                f"column must hold text, got {_kind(value)} in row {number} of {column!r} in {label}. Remove rows "
                "without text, or name another column."
            )
        if not _is_unicode(value):
            raise DataError(
                f"column must hold text, got half of a character (a lone surrogate) in row {number} of {column!r} in "
                f"{label}. Remove it."
            )
        texts.append(value)
    if texts and row_without_column is None:
        return texts
    if texts:
        raise DataError(
            f"column must hold text, got no {column!r} in row {row_without_column} of {label}. Remove that row."
        )
    if row_without_column is None:
        raise DataError(f"table must have rows, got none in {label}.")
    raise missing_column(list(names), column, label)


def looks_like(text: str, column: str) -> str | None:
    """Recognize a table in a plain text file by its content; None: it is plain text.

    JSON: the first lines are objects, or the whole text is an object or a list with objects. A table of fields: the
    first line is a header that contains the column, and the second line has fields too.
    """
    lines = list(islice((line.strip() for line in io.StringIO(text) if line.strip()), 5))
    if len(lines) > 1 and any(_is_header(lines[0].split(mark), column) and mark in lines[1] for mark in ",;\t|"):
        return "a table"
    if not lines or lines[0][0] not in "{[":
        return None
    if all(isinstance(parse_json(line), dict) for line in lines):
        return "JSON"
    document = parse_json(text)
    rows = document if isinstance(document, list) else [document]
    return "JSON" if any(isinstance(row, dict) for row in rows) else None


def _is_header(fields: Sequence[str], column: str) -> bool:
    return len(fields) > 1 and column in fields and all(field.isprintable() and " " not in field for field in fields)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    return KINDS.get(type(value)) or f"a value of type {type(value).__name__}"
