"""Check that the selection text is not the calibration or the evaluation text. Loads no torch."""

from __future__ import annotations

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
        if other is not None and _place(other) == _place(selection):
            raise DataError(
                f"selection text must not be the {name} text, got {selection.source!r} for both.",
                hint="Give another text with `selection`, or `speeches` for the text inside the package.",
            )


def _place(config: SelectionConfig | CalibrationConfig | EvaluationConfig) -> tuple[str | None, ...]:
    source = config.source
    return (source, config.subset, config.split) if text_kind(source) == "dataset" else (source, config.column)
