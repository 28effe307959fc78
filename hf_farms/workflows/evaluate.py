"""Evaluate a checkpoint and its dense model, and store the results in its folder."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_farms.config import EvaluationConfig, LoadOptions
from hf_farms.config.checks import is_count
from hf_farms.config.effect_inputs import EvaluateArguments, Inputs
from hf_farms.config.effects import given_fields, warn_unused
from hf_farms.errors import HfFarmsWarning, argument_errors
from hf_farms.files.paths import with_home, with_name
from hf_farms.metrics import METRICS
from hf_farms.output.allowed_paths import check_output_file
from hf_farms.progress import Progress, no_progress
from hf_farms.reports import EvaluationReport
from hf_farms.reports.base import save_report
from hf_farms.workflows.arguments import check_names, check_types
from hf_farms.workflows.evaluation_results import make_result
from hf_farms.workflows.evaluation_target import EvaluationTarget
from hf_farms.workflows.evaluation_text import perplexity_text
from hf_farms.workflows.recorded_results import known_perplexity, store, warn_of_another_text, warn_of_other_weights

if TYPE_CHECKING:
    from hf_farms.metrics.tasks import TaskSuite

__all__ = ["evaluate_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Measurements to make, after all checks.

    Attributes:
        target: the model.
        base: whether the dense model is measured too.
        text: of the perplexity; None: no perplexity.
        sparsity: whether zeros are counted.
        suite: tasks of lm-eval; None: no tasks.
    """

    target: EvaluationTarget
    base: bool
    text: EvaluationConfig | None
    sparsity: bool
    suite: TaskSuite | None


def evaluate_checkpoint(
    model: str | Path,
    *,
    metrics: Sequence[str] = METRICS,
    text: EvaluationConfig | Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int | Literal["auto"] = 8,
    include_path: str | Path | None = None,
    base: bool | None = None,
    load: LoadOptions | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
    on_stored: Callable[[str], None] | None = None,
) -> EvaluationReport:
    """Measure perplexity, sparsity and tasks of lm-eval, as `hf-farms eval` does.

    Results of a folder that `prune_checkpoint` wrote go into its report and its card too, as soon as they are known.

    Args:
        model: hub id, folder or `demo`.
        metrics: "perplexity" and "sparsity", either, or none.
        text: the text of the perplexity. None: that of the report of the model, else `EvaluationConfig()`. A
            mapping changes fields of that, such as `{"max_windows": 4}`; one that names another source begins with the
            defaults.
        tasks: names of tasks, groups or tags of lm-eval. They need the extra: pip install "hf-farms[eval]".
        num_fewshot: number of few-shot examples; None: that of each task.
        limit: evaluate only the first N samples of each task; None: all.
        batch_size: samples per batch; "auto": as many as fit in memory.
        include_path: a folder with your own tasks, as YAML files of lm-eval.
        base: also measure the dense model, for a paired comparison; None: where the model is a folder that
            `prune_checkpoint` wrote and that can be written to.
        load: options for loading the models.
        output: a JSON file for the results, new or of an earlier evaluation.
        progress: called with the name of a stage, finished steps and total steps.
        on_stored: called with the path of each file that was written: first `output`, then report and card of the
            folder if they have changed.

    Returns:
        The results, with those of the dense model where it was measured or the report knows them.

    Raises:
        ArgumentError: an argument is out of range, or nothing would be measured.
        HfFarmsError: the model, its report, the text or the tasks cannot be used, or a file must not be written.

    Example:
        >>> result = evaluate_checkpoint("demo", metrics=["sparsity"])
        >>> result.sparsity.value
        0.0
    """
    check_types(
        evaluate_checkpoint,
        progress=progress,
        models={"model": model},
        include_path=include_path,
        base=base,
        load=load,
        output=output,
    )
    check_names(metrics=metrics, tasks=tasks)
    load, output, name = load or LoadOptions(), with_home(Path(output)) if output else None, with_name(str(model))
    arguments = EvaluateArguments(
        perplexity="perplexity" in metrics,
        tasks=tuple(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        include_path=include_path,
        base=base,
    )
    _check(metrics, tasks, arguments)
    warn_unused(arguments)
    _warn_of_load(load, name)
    target = EvaluationTarget.find(name, revision=load.revision, base=base)
    config = perplexity_text(target, text, measured=arguments.perplexity)
    _check_places(target, output, config, include_path)
    _check_load(load)
    plan = _Plan(
        target=target,
        base=target.stored if base is None else base,
        text=config,
        sparsity="sparsity" in metrics,
        suite=_suite(tasks, include_path=include_path, num_fewshot=num_fewshot, limit=limit),
    )
    with given_fields(()):
        result, written = _measure(plan, load, batch_size, progress or no_progress)
    if output is not None:
        save_report(result, output)
        written = [output, *written]
    if on_stored is not None:
        for path in written:
            on_stored(str(path))
    return result


def _check(metrics: Sequence[str], tasks: Sequence[str], arguments: EvaluateArguments) -> None:
    from hf_farms.metrics.task_loading import check_task_options

    batch_size = arguments.batch_size
    with argument_errors():
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"metrics must be of {', '.join(METRICS)}, or none, got {name!r}.")
        if not metrics and not tasks:
            raise ValueError("metrics must not be none without tasks, as nothing would be measured. Name some `tasks`.")
        if batch_size != "auto" and not is_count(batch_size):
            raise ValueError(f"batch_size must be a positive number or auto, got {batch_size!r}.")
        check_task_options(
            include_path=arguments.include_path, num_fewshot=arguments.num_fewshot, limit=arguments.limit
        )


def _warn_of_load(load: LoadOptions, name: str) -> None:
    from hf_farms.loading.names import ModelRef

    kind = ModelRef.parse(name).kind
    warn_unused(load, Inputs(model=kind, checkpoint=kind != "demo"))


def _check_places(
    target: EvaluationTarget, output: Path | None, text: EvaluationConfig | None, include_path: str | Path | None
) -> None:
    """Refuse output paths that must not be written to, and unreadable texts."""
    source = text.source if text is not None else None
    if output is not None:
        dense = target.report.model if target.report is not None else None
        reads = {"the model": target.name, "the text": source, "the folder of tasks": include_path}
        check_output_file(output, {**reads, "the dense model": dense}, writes=[EvaluationReport])
    target.check_writable()
    if text is not None and source is not None:
        from hf_farms.data.texts import check_text, named_text

        with named_text("evaluation"):
            check_text(source, column=text.column)


def _check_load(load: LoadOptions) -> None:
    from hf_farms.loading.devices import find_device

    with argument_errors():
        find_device(load.device)


def _suite(tasks: Sequence[str], **options: Any) -> TaskSuite | None:
    if not tasks:
        return None
    from hf_farms.metrics.tasks import TaskSuite

    with argument_errors():
        return TaskSuite(tasks, **options)


def _measure(
    plan: _Plan, load: LoadOptions, batch_size: int | str, progress: Progress
) -> tuple[EvaluationReport, list[Path]]:
    """Measure the model, then the dense one; store results as soon as they are known.

    Returns:
        The results, and the files in the folder that were written again.
    """
    from hf_farms.workflows.evaluation_scores import Evaluator

    evaluator = Evaluator(
        text=plan.text, sparsity=plan.sparsity, suite=plan.suite, batch_size=batch_size, load=load, progress=progress
    )
    target, report = plan.target, plan.target.report
    scores = evaluator.measure(target.name, revision=load.revision, dtype=load.dtype, zeros=True, perplexity=True)
    known = known_perplexity(scores, plan.text, report)
    if report is not None:
        known = warn_of_other_weights(scores, known, report)
    dense = target.dense
    make = partial(make_result, target.name, scores, text=plan.text, known=known, base=dense[0] if dense else None)
    result = make(notes=evaluator.notes)
    if target.stored and report is not None:
        warn_of_another_text(result, report)
    written = dict.fromkeys(store(Path(target.name), result) if target.stored else ())
    perplexity = scores.nll is not None and (known is None or known.dense is None)
    if plan.base and dense is not None and (perplexity or scores.tasks) and _is_there(target):
        # Avoid two models in memory.
        gc.collect()
        dense_scores = evaluator.measure(
            dense[0], revision=dense[1], dtype=scores.dtype, zeros=False, perplexity=perplexity
        )
        result = make(notes=evaluator.notes, dense=dense_scores)
        written |= dict.fromkeys(store(Path(target.name), result) if target.stored else ())
    return result, list(written)


def _is_there(target: EvaluationTarget) -> bool:
    """Whether the dense model can be measured; warn if not."""
    if target.report is not None and target.dense_is_missing:
        warnings.warn(
            f"the dense model is not at {target.report.model!r}, where the report has it: it was not measured.",
            HfFarmsWarning,
            stacklevel=2,
        )
        return False
    return True
