"""`hf-farms prune MODEL`: the options. What happens is in pipeline.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hf_farms.config import (
    ALLOCATIONS,
    METHODS,
    CalibrationConfig,
    EvaluationConfig,
    PruneConfig,
)
from hf_farms.files.paths import with_home, with_name
from hf_farms.output.local_paths import load_local_paths
from hf_farms.output.recipe import Recipe
from hf_farms_cli.console import check_format, guarded, if_interrupted, print_remark, quiet_transformers, stages
from hf_farms_cli.dry_run import plan_line, print_plan, prune_lines
from hf_farms_cli.options import (
    AllowPickleOption,
    DebugOption,
    DryRunOption,
    FormatOption,
    JsonOption,
    PrivateOption,
    QuietOption,
    RevisionOption,
    TokenOption,
    UsageError,
    check_device,
    check_repo_id,
    complete,
    given,
    usage,
)
from hf_farms_cli.push import ForeignOption, MessageOption, RequestOption, check_hub, finish_prune, use_token
from hf_farms_cli.shown_command import shown_command

if TYPE_CHECKING:
    from hf_farms.config import Allocation, Method

PRUNE, CALIBRATION, EVALUATION = PruneConfig(), CalibrationConfig(), EvaluationConfig()

# What a recipe says too, and what only a push needs.
RECIPE_OPTIONS = (
    *("sparsity", "method", "pattern", "allocation", "spread", "dtype", "revision", "seed", "context_length"),
    *("calibration", "calibration_column", "calibration_subset", "calibration_split"),
    *("calibration_samples", "calibration_length"),
    *("evaluation", "evaluation_column", "evaluation_subset", "evaluation_split", "evaluation_windows"),
)
PUSH_OPTIONS = ("repo_id", "private", "create_pr", "commit_message", "yes")


@guarded
def prune_command(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id, folder, `demo`, or the recipe.yaml of an earlier run.",
            metavar="MODEL",
            autocompletion=complete(["demo"]),
        ),
    ],
    sparsity: Annotated[float, typer.Option("-s", "--sparsity", help="Zeros as a fraction of the pruned layers.")] = (
        PRUNE.sparsity
    ),
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS)}.", autocompletion=complete(METHODS))
    ] = PRUNE.method,
    pattern: Annotated[
        str,
        typer.Option(
            help="`unstructured`; `2:4` or any N:M: N of every M neighbours stay; `N:8`: each block has its own N.",
            autocompletion=complete(["unstructured", "2:4", "4:8", "N:8"]),
        ),
    ] = PRUNE.pattern,
    allocation: Annotated[
        str,
        typer.Option(
            help=f"How it is spread over blocks: {', '.join(ALLOCATIONS)}.", autocompletion=complete(ALLOCATIONS)
        ),
    ] = PRUNE.allocation,
    spread: Annotated[float, typer.Option(help="How far block sparsities may differ (epsilon).")] = PRUNE.spread,
    calibration: Annotated[
        str,
        typer.Option(
            help="`speeches` (inside the package), `self` (written by the model), a text file, a table (JSON, JSONL, "
            "CSV, TSV, parquet, Arrow), or a dataset id."
        ),
    ] = CALIBRATION.source,
    calibration_column: Annotated[str, typer.Option(help="Text column of a table or dataset.")] = CALIBRATION.column,
    calibration_subset: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    calibration_split: Annotated[str, typer.Option(help="Split of a Hub dataset.")] = CALIBRATION.split,
    calibration_samples: Annotated[int, typer.Option(help="Number of sequences.")] = CALIBRATION.num_sequences,
    calibration_length: Annotated[int, typer.Option(help="Tokens in a sequence.")] = CALIBRATION.sequence_length,
    seed: Annotated[int, typer.Option(help="Seed of the calibration sequences.")] = CALIBRATION.seed,
    evaluation: Annotated[
        str, typer.Option(help="Text to measure perplexity on, as for --calibration; `none` for no perplexity.")
    ] = str(EVALUATION.source),
    evaluation_column: Annotated[str, typer.Option(help="Text column of a table or dataset.")] = EVALUATION.column,
    evaluation_subset: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    evaluation_split: Annotated[str, typer.Option(help="Split of a Hub dataset.")] = EVALUATION.split,
    evaluation_windows: Annotated[int, typer.Option(help="Windows from the start of the text; 0: all.")] = (
        EVALUATION.max_windows or 0
    ),
    context_length: Annotated[int, typer.Option(help="Tokens in a window of the perplexity.")] = (
        EVALUATION.context_length
    ),
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="Measure the perplexity of uniform sparsity too, for comparison: takes a second pruning.",
        ),
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder  [default: ./<model>-<allocation>-<method>-<percent>; beside MODEL if this runs in it]",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace an earlier result, and unfinished work of other settings; never what others wrote.",
        ),
    ] = False,
    dtype: Annotated[str, typer.Option(help="Load and save as this dtype; `auto`: the checkpoint's own.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Device; a GPU if there is one, else the CPU.")] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Leave the blocks on disk and load one at a time; the result is the same  [default: where the model "
            "would take more than half of the free memory]",
        ),
    ] = None,
    revision: RevisionOption = None,
    allow_pickle: AllowPickleOption = False,
    push: Annotated[bool, typer.Option("--push", help="Upload the result to the Hub.")] = False,
    repo_id: Annotated[
        str | None, typer.Option(help="Repository for --push  [default: <user>/<name of the output folder>]")
    ] = None,
    private: PrivateOption = None,
    create_pr: RequestOption = False,
    commit_message: MessageOption = None,
    yes: ForeignOption = False,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Prune a model: measure its layers, set the least important weights to zero, measure again, describe.

    Examples:
    hf-farms prune demo
    hf-farms prune meta-llama/Llama-2-7b --push
    hf-farms prune Qwen/Qwen3-0.6B --sparsity 0.6 --push --repo-id my-org/qwen3-sparse --private
    hf-farms prune Qwen/Qwen3-0.6B --push --dry-run
    """
    shown = check_format(format_, quiet, json_)
    if not push and (there := given(context, PUSH_OPTIONS)):
        raise UsageError(f"{there[0]} must come with --push, got it without. Add --push, or leave it out.")
    if model.lower().endswith((".yaml", ".yml")):
        if there := given(context, RECIPE_OPTIONS):
            raise UsageError(
                f"{there[0]} must be left out beside a recipe, which says it, got both. Edit {model}, or name a model."
            )
        recipe = Recipe.load(model).located(load_local_paths(Path(model).parent))
    else:
        model = with_name(model)
        with usage():
            recipe = Recipe(
                model=model,
                revision=revision,
                dtype=dtype,
                prune=PruneConfig(
                    sparsity=sparsity,
                    method=cast("Method", method),
                    pattern=pattern,
                    allocation=cast("Allocation", allocation),
                    spread=spread,
                ),
                calibration=CalibrationConfig(
                    source=calibration,
                    column=calibration_column,
                    subset=calibration_subset,
                    split=calibration_split,
                    num_sequences=calibration_samples,
                    sequence_length=calibration_length,
                    seed=seed,
                ),
                evaluation=EvaluationConfig(
                    source=None if evaluation == "none" else evaluation,
                    column=evaluation_column,
                    subset=evaluation_subset,
                    split=evaluation_split,
                    context_length=context_length,
                    max_windows=evaluation_windows or None,
                ),
            )
    check_repo_id(repo_id)
    use_token(token)
    from hf_farms.output.folder import OutputFolder
    from hf_farms.workflows.finished import check_before_work, default_folder

    folder = with_home(output) or default_folder(recipe)
    texts = dict(zip(("the calibration text", "the evaluation text"), recipe.texts(), strict=True))
    reads = {"the model": recipe.model, "the recipe": model if model != recipe.model else None, **texts}
    place = OutputFolder(folder, overwrite=overwrite, reads=reads)
    report = check_before_work(recipe, place, overwrite=overwrite, baseline=baseline)
    base = target = None
    if report is None or push:
        # The Hub is asked first: torch takes seconds to load.
        base, target = check_hub(
            recipe,
            folder,
            push=push,
            repo_id=repo_id,
            private=private,
            create_pr=create_pr,
            overwrite=yes,
            allow_pickle=allow_pickle,
        )
    from hf_farms import hub
    from hf_farms.workflows.prune import run_prune
    from hf_farms_cli.tables import print_result

    check_device(device, dtype)
    size = hub.weights_size(recipe.model, revision=recipe.revision) if report is None else None
    place.check_space(size or 0)
    if report is not None:
        print_remark(f"{folder} is finished already: nothing was pruned.", shown)
    if dry_run:
        lines = prune_lines(recipe, folder, finished=report, base=base, size=size)
        print_plan([*lines, f"push: {plan_line(target)}"], shown)
        return
    if target is not None:
        hub.create_repository(target)
    if report is None:
        quiet_transformers()
        note = f"Unfinished work is in {place.partial}: the same command goes on with it."
        with if_interrupted(note, there=place.partial), place.locked(), stages(shown) as progress:
            report = run_prune(
                recipe,
                folder,
                overwrite=overwrite,
                device=device,
                stream=stream,
                allow_pickle=allow_pickle,
                baseline=baseline,
                repo_id=target.repo_id if target is not None else None,
                progress=progress,
                command=shown_command(sys.argv),
                base=base,
            )
    url = None
    if target is not None:
        url = finish_prune(folder, target, private=private, commit_message=commit_message, yes=yes)
    print_result(report, folder, url, shown)
