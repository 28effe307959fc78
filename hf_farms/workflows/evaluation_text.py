"""The text on which `evaluate_checkpoint` measures the perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from hf_farms.config import EvaluationConfig
from hf_farms.config.checks import check
from hf_farms.config.effect_inputs import Inputs
from hf_farms.config.effects import warn_unused
from hf_farms.errors import ArgumentError, argument_errors
from hf_farms.workflows.evaluation_target import EvaluationTarget

__all__ = ["perplexity_text"]


def perplexity_text(
    target: EvaluationTarget, text: EvaluationConfig | Mapping[str, Any] | None, *, measured: bool
) -> EvaluationConfig | None:
    """Return the text of the perplexity, None where it is not measured; warn of fields that have no effect.

    Args:
        target: the model, whose report may name a text.
        text: as for `evaluate_checkpoint`.
        measured: whether the perplexity is measured.

    Raises:
        ArgumentError: no text, or unknown or invalid fields.
    """
    from hf_farms.data.texts import text_kind

    given = None if isinstance(text, EvaluationConfig) else set(text or {})
    config = _config(target, text)
    inputs = Inputs(text=text_kind(config.source), perplexity=measured)
    warn_unused(config, inputs, prefix="text.", given=given)
    if not measured:
        return None
    if config.source is None:
        raise ArgumentError("text must be one to measure on, got 'none'. Leave perplexity out: `metrics=['sparsity']`.")
    return config


def _config(target: EvaluationTarget, text: EvaluationConfig | Mapping[str, Any] | None) -> EvaluationConfig:
    """Return the text that the arguments name, with the fields of the report's where they name none."""
    if not isinstance(text, EvaluationConfig):
        with argument_errors():
            remedy = f"Write {{'source': {text!r}}}." if isinstance(text, str) else ""
            constraint = "an EvaluationConfig, a mapping of its fields, or None"
            check(text is None or isinstance(text, Mapping), "text", constraint, text, remedy)
        changes, config = dict(text or {}), EvaluationConfig()
        if "source" not in changes and target.report is not None and target.report.perplexity is not None:
            config = target.report.perplexity.config
        with argument_errors():
            names = [field.name for field in fields(EvaluationConfig)]
            if unknown := set(changes) - set(names):
                raise ValueError(f"text must have fields of {', '.join(names)}, got {min(unknown)!r}.")
            text = replace(config, **changes)
    return text
