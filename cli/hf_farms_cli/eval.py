"""`hf-farms eval MODEL`: the options. The work is `evaluate_checkpoint`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from hf_farms.config import EvaluationConfig, LoadOptions
from hf_farms.metrics import METRICS
from hf_farms.reports import REPORT_NAME
from hf_farms_cli.console import Format, check_format, guarded, print_remark, quiet_transformers, stages
from hf_farms_cli.guard import shown_warnings
from hf_farms_cli.options import (
    AllowPickleOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    JsonOption,
    ModelArgument,
    QuietOption,
    RevisionOption,
    StreamOption,
    complete,
    usage,
)

__all__ = ["eval_command"]

TEXT = EvaluationConfig()


@guarded
def eval_command(
    model: ModelArgument,
    metrics: Annotated[
        str,
        typer.Option(help=f"Comma-separated: {', '.join(METRICS)}; or `none`.", autocompletion=complete(METRICS)),
    ] = ",".join(METRICS),
    tasks: Annotated[
        str | None,
        typer.Option(help="Comma-separated tasks, groups or tags of lm-eval, such as hellaswag,arc_easy."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Number of few-shot examples  [default: that of each task]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Evaluate only the first N samples of each task  [default: all]")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Samples per batch; `auto`: as many as fit in memory.")] = "8",
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with your own tasks, as YAML files of lm-eval.")
    ] = None,
    base: Annotated[
        bool | None,
        typer.Option(
            "--base/--no-base",
            help="Also measure the dense model, for a paired comparison  [default: if MODEL is a folder written by "
            "`hf-farms prune`]",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text for perplexity, as --evaluation of prune  [default: that of the report in MODEL, "
            f"else {TEXT.source}]"
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Text column of a table or dataset.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub dataset.")] = None,
    context_length: Annotated[
        int | None,
        typer.Option(help=f"Tokens per window  [default: that of the report in MODEL, else {TEXT.context_length}]"),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            help="Number of windows, from the start of the text; 0: all  [default: that of the report in MODEL, "
            f"else {TEXT.max_windows}]"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results to this JSON file.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    stream: StreamOption = None,
    revision: RevisionOption = None,
    allow_pickle: AllowPickleOption = False,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure perplexity and sparsity, and run tasks of lm-eval.

    If MODEL is a folder written by `hf-farms prune`, the results are also added to its report and model card.

    For tasks: pip install "hf-farms[eval]".

    Examples:
        hf-farms eval demo
        hf-farms eval ./Llama-2-7b-farms-wanda-50 --tasks hellaswag,arc_easy,winogrande
        hf-farms eval Qwen/Qwen3-0.6B --metrics perplexity --text wiki.test.txt --context-length 2048 --windows 0
    """
    output_format = check_format(format_, quiet, json_)
    from hf_farms.workflows.evaluate import evaluate_checkpoint
    from hf_farms_cli.evaluation_tables import print_evaluation

    with usage():
        if tasks is not None and not _names(tasks):
            raise ValueError(f"tasks must be names with commas between, got {tasks!r}. Name one, or leave --tasks out.")
        load = LoadOptions(dtype=dtype, device=device, stream=stream, allow_pickle=allow_pickle, revision=revision)
    quiet_transformers()
    stored: list[str] = []
    with stages(output_format) as progress:
        result = evaluate_checkpoint(
            model,
            metrics=[] if metrics.strip() == "none" else _names(metrics),
            text=_text(source=text, column=column, subset=subset, split=split, context_length=context_length)
            | _windows(windows),
            tasks=_names(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=cast("Any", int(batch_size) if batch_size.isdecimal() else batch_size),
            include_path=include_path,
            base=base,
            load=load,
            output=output,
            progress=progress,
            on_stored=stored.append,
        )
    print_evaluation(result, output_format)
    _print_stored(stored, Path(model), output_format, with_output=output is not None)


def _print_stored(stored: Sequence[str], folder: Path, output_format: Format, *, with_output: bool) -> None:
    """Print the files that were written, the one of --output first; say if a report had the results already."""
    if stored:
        files = ", ".join(stored[:-1]) + (" and " if stored[1:] else "") + stored[-1]
        print_remark(f"Wrote the results into {files}.", output_format)
    unchanged = not stored[with_output:] and (folder / REPORT_NAME).is_file()
    if unchanged and output_format != "quiet" and not shown_warnings:
        said = "it was not written again" if stored else "nothing was written"
        print_remark(f"Its report has these results already: {said}.", output_format)


def _names(value: str | None) -> list[str]:
    names = [name.strip() for name in (value or "").split(",")]
    return list(dict.fromkeys(filter(None, names)))


def _text(**options: Any) -> dict[str, Any]:
    """Return the given fields of the text; source `none` becomes None."""
    changes = {name: value for name, value in options.items() if value is not None}
    return changes | ({"source": None} if changes.get("source") == "none" else {})


def _windows(number: int | None) -> dict[str, int | None]:
    return {} if number is None else {"max_windows": number or None}
