"""Build the YAML header of a card: license, base model, tags, evaluation results."""

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
    """Return the Hub id of a model; None for a folder, `demo`, and invalid ids."""
    name = base.repo_id if base is not None else model
    return name if name is not None and HUB_ID.fullmatch(name) else None


def short_source(source: str) -> str:
    """Return the name of a text: a dataset id, or a file name without its folders."""
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
    """Build the header.

    Args:
        name: name of the repository.
        base: record of the dense model, for license and languages.
        base_id: Hub id of the dense model.
        tags: tags in addition to `hf-farms`.
        pipeline_tag: task.
        results: results for the model index; may be empty.
    """
    from huggingface_hub import ModelCardData

    languages = [code for code in base.languages if LANGUAGE.fullmatch(code)] if base else []
    return ModelCardData(
        language=languages or None,
        license=_one_line_or_none(base.license if base else None),
        license_name=_one_line_or_none(base.license_name if base else None),
        license_link=_one_line_or_none(base.license_link if base else None),
        library_name="transformers",
        pipeline_tag=_one_line_or_none(pipeline_tag),
        base_model=base_id,
        # The Hub has no relation for pruning; the tags mention it.
        base_model_relation="finetune" if base_id else None,
        tags=["hf-farms", *tags],
        model_name=one_line(name).rsplit("/", 1)[-1] if results else None,
        # None instead of [], which the class treats as a result without a value.
        eval_results=list(results) or None,
    )


def perplexity_results(perplexity: PerplexityRecord | None) -> list[EvalResult]:
    """Return the perplexity of the pruned model as results of the model index."""
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
    """Return lm-eval scores as results of the model index."""
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
    """Return metrics of the evaluations during training as results; their data are not recorded.

    Args:
        metrics: metrics by their names in the Trainer.
        task: task of the model, by its name on the Hub.
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
        # YAML can only represent Python floats.
        metric_value=round(float(value), 4),
        metric_name=name or metric,
        **more,
    )


def _one_line_or_none(value: str | None) -> str | None:
    return one_line(value) or None if value is not None else None
