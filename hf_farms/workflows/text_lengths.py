"""Refuse texts that are too short in tokens before the weights of a model are fetched and loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from hf_farms.config import CalibrationConfig, EvaluationConfig, SelectionConfig
from hf_farms.data.calibration import passages
from hf_farms.data.selection import selection_sequences
from hf_farms.data.texts import Tokenizer, read_text, text_kind
from hf_farms.metrics.nll import require_causal
from hf_farms.workflows.texts import evaluation_tokens

if TYPE_CHECKING:
    from hf_farms.loading.opening import BeforeWeights
    from hf_farms.output.recipe import Recipe

__all__ = ["checked_before_weights", "texts_of"]

Text = CalibrationConfig | SelectionConfig | EvaluationConfig
Require = Callable[[nn.Module], None]
# A longer text has more than one token in so many characters, whatever the tokenizer: it need not be tokenized twice.
CHARACTERS = 16


def texts_of(recipe: Recipe) -> list[Text]:
    """Return the texts that a recipe reads, in that order."""
    prune, selection = recipe.prune, recipe.selection
    texts: list[Text] = [recipe.evaluation] if recipe.evaluation.source is not None else []
    texts += [recipe.calibration] if prune.needs_calibration and recipe.calibration.source != "self" else []
    return [*texts, selection] if selection is not None and prune.needs_selection else texts


def checked_before_weights(texts: Sequence[Text], *, require: Require = require_causal) -> BeforeWeights | None:
    """Return a check of texts for `load_model`; None if all are long enough, or datasets on the Hub.

    The check raises what the stages raise that read these texts.

    Args:
        texts: to check.
        require: refuses a model that no evaluation text fits.
    """
    checks = [found for text in texts if (found := _check_of(text, require)) is not None]
    if not checks:
        return None

    def check(model: nn.Module, tokenizer: Tokenizer | None) -> None:
        for one in checks:
            one(model, tokenizer)

    return check


def _check_of(text: Text, require: Require) -> Callable[[nn.Module, Tokenizer | None], object] | None:
    if isinstance(text, CalibrationConfig):
        short = _may_be_short(text, text.sequence_length)
        return (lambda model, words: passages(text, model=model, tokenizer=words)) if short else None
    if isinstance(text, SelectionConfig):
        short = _may_be_short(text, 4 * text.sequence_length)
        return (lambda model, words: selection_sequences(text, model=model, tokenizer=words)) if short else None

    def check(model: nn.Module, tokenizer: Tokenizer | None) -> None:
        require(model)
        if tokenizer is not None:
            evaluation_tokens(text, model=model, tokenizer=tokenizer)

    return check if _may_be_short(text, text.context_length) else None


def _may_be_short(text: Text, tokens: int) -> bool:
    """Whether a local text may have fewer tokens than these."""
    kind = text_kind(text.source)
    if text.source is None or kind not in ("file", "table"):
        return False
    # UTF-8 has up to four bytes for a character.
    if kind == "file" and Path(text.source).stat().st_size > 4 * CHARACTERS * tokens:
        return False
    return len(read_text(text.source, column=text.column)) < CHARACTERS * tokens
