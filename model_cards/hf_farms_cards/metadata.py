"""Reports -> the YAML header of a card, as the Hub reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_farms.reports import BaseModelRecord, PerplexityRecord, TaskRecord
from hf_farms.reports.metrics import is_bookkeeping
from hf_farms_cards.markdown import one_line

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

__all__ = ["card_data", "hub_id", "metric_results", "perplexity_results", "short_source", "task_results"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual", re.ASCII)


def hub_id(model: str | None, base: BaseModelRecord | None) -> str | None:
    """The id of a model on the Hub; None for a folder, `demo`, and what cannot be an id."""
    name = base.repo_id if base is not None else model
    return name if name is not None and HUB_ID.fullmatch(name) else None


def short_source(source: str) -> str:
    """The name of a text; of a file on somebody's disk without its folders."""
    return one_line(source if HUB_ID.fullmatch(source) else re.split(r"[\\/]", source)[-1]) or "text"


def card_data(
    *,
    name: str,
    base: BaseModelRecord | None,
    base_id: str | None,
    tags: Sequence[str],
    pipeline_tag: str,
    results: Sequence[EvalResult],
) -> ModelCardData:
    """The header.

    Args:
        name: of the repository.
        base: what the Hub says of the dense model, for licence and languages.
        base_id: its id.
        tags: beside `hf-farms`.
        pipeline_tag: task.
        results: for the model index; may be empty.
    """
    from huggingface_hub import ModelCardData

    languages = [code for code in base.languages if LANGUAGE.fullmatch(code)] if base else []
    return ModelCardData(
        language=languages or None,
        license=_text(base.license if base else None),
        license_name=_text(base.license_name if base else None),
        license_link=_text(base.license_link if base else None),
        library_name="transformers",
        pipeline_tag=_text(pipeline_tag),
        base_model=base_id,
        # The Hub has no relation for pruning; the tags say it.
        base_model_relation="finetune" if base_id else None,
        tags=["hf-farms", *tags],
        model_name=one_line(name).rsplit("/", 1)[-1] if results else None,
        # None and not [], which the class takes for a result without a value.
        eval_results=list(results) or None,
    )


def perplexity_results(perplexity: PerplexityRecord | None) -> list[EvalResult]:
    """Perplexity of the pruned model."""
    if perplexity is None or perplexity.pruned is None or not math.isfinite(perplexity.pruned):
        return []
    config, context = perplexity.config, perplexity.context_length
    return [
        _result(
            dataset=short_source(str(config.source)),
            metric="perplexity",
            value=perplexity.pruned,
            name=f"perplexity (context {context})",
            dataset_config=config.subset,
            dataset_split=config.split if "/" in short_source(str(config.source)) else None,
        )
    ]


def task_results(tasks: Sequence[TaskRecord]) -> list[EvalResult]:
    """Tasks of lm-eval."""
    return [
        _result(
            dataset=one_line(task.task),
            metric=one_line(task.metric),
            value=task.value,
            name=f"{one_line(task.metric)} ({task.num_fewshot}-shot)",
        )
        for task in tasks
        if math.isfinite(task.value)
    ]


def metric_results(metrics: Mapping[str, float], *, task: str) -> list[EvalResult]:
    """What an evaluation during the training gave; of which text is not recorded.

    Args:
        metrics: by the Trainer's names.
        task: of the model, by the Hub's name.
    """
    return [
        _result(
            dataset="evaluation set of the training",
            metric=one_line(name.removeprefix("eval_")),
            value=value,
            task=one_line(task),
        )
        for name, value in metrics.items()
        if name.startswith("eval_") and not is_bookkeeping(name) and math.isfinite(value)
    ]


def _result(
    *, dataset: str, metric: str, value: float, name: str | None = None, task: str = "text-generation", **more: Any
) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=task,
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=metric,
        # A float of Python's own: YAML has no other.
        metric_value=round(float(value), 4),
        metric_name=name or metric,
        **more,
    )


def _text(value: str | None) -> str | None:
    return one_line(value) or None if value is not None else None
