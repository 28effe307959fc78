"""`hf-farms eval MODEL`: the options. What happens is in evaluation.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_farms.config import EvaluationConfig
from hf_farms_cli.console import check_format, guarded, print_remark, quiet_transformers, stages
from hf_farms_cli.options import (
    AllowPickleOption,
    DebugOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    ModelArgument,
    QuietOption,
    RevisionOption,
    UsageError,
    check_device,
    complete,
    usage,
)

if TYPE_CHECKING:
    from hf_farms.reports import EvaluationReport, PruneReport

__all__ = ["eval_command"]

METRICS = ("perplexity", "sparsity")
TEXT = EvaluationConfig()


@guarded
def eval_command(
    model: ModelArgument,
    metrics: Annotated[
        str,
        typer.Option(
            help="Of " + ", ".join(METRICS) + ", with commas between; `none`.", autocompletion=complete(METRICS)
        ),
    ] = ",".join(METRICS),
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, groups or tags of lm-eval, with commas between, such as hellaswag,arc_easy."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question  [default: what the task says]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many questions from the start of each task.")] = None,
    batch_size: Annotated[str, typer.Option(help="Questions at once; `auto`: as many as fit.")] = "8",
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with tasks of your own, as YAML files of lm-eval.")
    ] = None,
    base: Annotated[
        bool | None,
        typer.Option(
            "--base/--no-base",
            help="Ask the dense model the same questions, for a paired comparison  [default: where MODEL is a folder "
            "that `hf-farms prune` wrote]",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to measure perplexity on, as --evaluation of prune  [default: that of the report beside MODEL, "
            f"else {TEXT.source}]"
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Text column of a table or dataset.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub dataset.")] = None,
    context_length: Annotated[
        int | None, typer.Option(help=f"Tokens in a window  [default: as the text, else {TEXT.context_length}]")
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            help=f"Windows from the start of the text; 0: all  [default: as the text, else {TEXT.max_windows}]"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results to this JSON file.")] = None,
    dtype: Annotated[str, typer.Option(help="Load as this dtype; `auto`: the checkpoint's own.")] = "auto",
    device: DeviceOption = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Leave the blocks on disk and load one at a time  [default: where the model would take more than half "
            "of the free memory]",
            show_default=False,
        ),
    ] = None,
    revision: RevisionOption = None,
    allow_pickle: AllowPickleOption = False,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure perplexity, sparsity and tasks of lm-eval.

    Where MODEL is a folder that `hf-farms prune` wrote, the results go into its report and its card too. Tasks need
    the extra: pip install "hf-farms[eval]".

    Examples:
        hf-farms eval demo
        hf-farms eval ./Llama-2-7b-farms-wanda-50 --tasks hellaswag,arc_easy,winogrande
        hf-farms eval Qwen/Qwen3-0.6B --metrics perplexity --text wiki.test.txt --context-length 2048 --windows 0
    """
    shown = check_format(format_, quiet, json_)
    with usage():
        wanted, asked = _names("metrics", metrics), _names("tasks", tasks or "")
        size = _batch_size(batch_size)
    if not wanted and not asked:
        raise UsageError("metrics must not be none without tasks, as nothing would be measured. Name some --tasks.")
    from hf_farms.files.path_checks import check_file
    from hf_farms.files.paths import with_home, with_name

    output, model = with_home(output), with_name(model)
    if output is not None:
        check_file(output)
    from hf_farms.workflows.evaluate import Evaluation, check_model, check_places, evaluate
    from hf_farms_cli.evaluation_tables import print_evaluation

    report, writes = check_model(model, revision=revision, base=base)
    with usage():
        config = _text(
            report,
            source=text,
            column=column,
            subset=subset,
            split=split,
            context_length=context_length,
            max_windows=windows,
        )
    reads = {"the model": model, "the text": config.source, "the folder of tasks": include_path}
    check_places(output, Path(model) if writes else None, report, reads)
    if "perplexity" in wanted and config.source is not None:
        from hf_farms.data.texts import check_text

        check_text(config.source, column=config.column)
    check_device(device, dtype)
    suite = None
    if asked:
        from hf_farms.metrics.tasks import TaskSuite

        with usage():
            suite = TaskSuite(asked, include_path=include_path, num_fewshot=num_fewshot, limit=limit)
    quiet_transformers()
    with stages(shown) as progress:
        evaluation = Evaluation(
            text=config if "perplexity" in wanted else None,
            sparsity="sparsity" in wanted,
            suite=suite,
            batch_size=size,
            device=device,
            stream=stream,
            allow_pickle=allow_pickle,
            progress=progress,
        )
        result, written = evaluate(
            evaluation,
            model,
            revision=revision,
            dtype=dtype,
            report=report,
            base=writes if base is None else base,
            writes=writes,
        )
    _write(result, output)
    print_evaluation(result, shown)
    if written:
        print_remark(f"Report and card in {model} are up to date with this.", shown)


def _names(option: str, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    if option == "metrics":
        if names == ["none"]:
            return []
        for name in names:
            if name not in METRICS:
                raise ValueError(f"metrics must be of {', '.join(METRICS)}, or none, got {name!r}.")
    return list(dict.fromkeys(names))


def _batch_size(value: str) -> int | str:
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"batch_size must be a positive number or auto, got {value!r}.")
    return int(value)


def _text(report: PruneReport | None, **given: Any) -> EvaluationConfig:
    """The text of the report with what was asked for otherwise; with another text, nothing of the report's."""
    config = TEXT
    if report is not None and report.perplexity is not None and given["source"] is None:
        config = report.perplexity.config
    if given["source"] == "none":
        raise ValueError("text must be one to measure on, got 'none'. Leave perplexity out: --metrics sparsity.")
    changes = {name: value for name, value in given.items() if value is not None}
    if given["max_windows"] == 0:
        changes["max_windows"] = None
    return replace(config, **changes)


def _write(result: EvaluationReport, output: Path | None) -> None:
    if output is not None:
        from hf_farms.files.atomic_writes import writing

        with writing(output.parent):
            output.parent.mkdir(parents=True, exist_ok=True)
            result.save(output)
