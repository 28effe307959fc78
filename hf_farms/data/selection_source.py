"""Check that the selection text is not the calibration or the evaluation text. Loads no torch."""

from __future__ import annotations

import filecmp
from contextlib import suppress
from pathlib import Path

from hf_farms.config import CalibrationConfig, EvaluationConfig, SelectionConfig
from hf_farms.data.texts import BUILT_IN, text_kind
from hf_farms.errors import DataError

__all__ = ["check_selection_source"]


def check_selection_source(
    selection: SelectionConfig, *, calibration: CalibrationConfig | None, evaluation: EvaluationConfig | None
) -> None:
    """Refuse a selection text that is the calibration or the evaluation text.

    Args:
        selection: the selection text.
        calibration: the calibration text; None if there is none.
        evaluation: the evaluation text; None if there is none.

    Raises:
        DataError: it is one of them.
    """
    if selection.source == BUILT_IN:
        return
    others: tuple[tuple[str, CalibrationConfig | EvaluationConfig | None], ...] = (
        ("calibration", calibration),
        ("evaluation", evaluation),
    )
    for name, other in others:
        if other is not None and _is_same(other, selection):
            raise DataError(
                f"selection text must not be the {name} text, got {selection.source!r} for both.",
                hint="Give another text with `selection`, or `speeches` for the text inside the package.",
            )


def _is_same(other: CalibrationConfig | EvaluationConfig, selection: SelectionConfig) -> bool:
    if other.source is None or text_kind(other.source) != text_kind(selection.source):
        return False
    if text_kind(selection.source) == "dataset":
        return (other.source, other.subset, other.split) == (selection.source, selection.subset, selection.split)
    return other.column == selection.column and _is_same_file(Path(other.source), Path(selection.source))


def _is_same_file(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one file, or to files with the same content."""
    if path == other:
        return True
    with suppress(OSError):
        return path.samefile(other) or (path.is_file() and filecmp.cmp(path, other, shallow=False))
    return False
