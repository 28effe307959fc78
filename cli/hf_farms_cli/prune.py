"""`hf-farms prune MODEL`: prune a model into a folder, and push it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hf_farms.config import (
    ALLOCATIONS,
    ENDS,
    GRANULARITIES,
    METHODS,
    RECOVERIES,
    REFINEMENTS,
    CalibrationConfig,
    EvaluationConfig,
    LoadOptions,
    PruneConfig,
    SelectionConfig,
)
from hf_farms.files.paths import with_home
from hf_farms_cli.console import check_format, guarded, print_remark
from hf_farms_cli.dry_run import print_plan, prune_plan
from hf_farms_cli.options import (
    CALIBRATION,
    EVALUATION,
    HUB,
    PRUNING,
    RESULT,
    SELECTION,
    AllowPickleOption,
    BranchOption,
    DebugOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    ForeignOption,
    FormatOption,
    JsonOption,
    MessageOption,
    PrivateOption,
    QuietOption,
    RequestOption,
    RevisionOption,
    StreamOption,
    TokenOption,
    UsageError,
    check_branch,
    check_device,
    check_repo_id,
    complete,
    given,
    model_argument,
    usage,
    use_token,
)
from hf_farms_cli.prune_recipe import recipe_for
from hf_farms_cli.prune_run import run_and_print

__all__ = ["prune_command"]

PRUNE, TEXT, TEST, SELECT = PruneConfig(), CalibrationConfig(), EvaluationConfig(), SelectionConfig()
SPREADS = ", ".join(f"{entry.spread:g} for {name}" for name, entry in ALLOCATIONS.items() if "spread" in entry.options)
RECOVERING = {name: entry for name, entry in RECOVERIES.items() if "recover_passes" in entry.options}
PASSES = ", ".join(
    f"{entry.passes} for {name}{', fewer over more than 32 sequences' if entry.steps else ''}"
    for name, entry in RECOVERING.items()
)
RATES = ", ".join(f"{entry.rate:g} for {name}" for name, entry in RECOVERING.items())

pruning, calibrating, selecting, evaluating, writing, pushing = (
    partial(typer.Option, rich_help_panel=panel) for panel in (PRUNING, CALIBRATION, SELECTION, EVALUATION, RESULT, HUB)
)


@guarded
def prune_command(
    context: typer.Context,
    model: Annotated[str, model_argument(", or the recipe.yaml of an earlier run")],
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    stream: StreamOption = None,
    allow_pickle: AllowPickleOption = False,
    sparsity: Annotated[
        float, pruning("-s", "--sparsity", help="Fraction of zeros in the pruned layers.")
    ] = PRUNE.sparsity,
    method: Annotated[
        str, pruning(help=f"Pruning method: {', '.join(METHODS)}.", autocompletion=complete(METHODS))
    ] = PRUNE.method,
    pattern: Annotated[
        str,
        pruning(
            help="`unstructured`; `2:4` or any N:M: keep N of every M consecutive weights; `N:8`: N is chosen per "
            "block.",
            autocompletion=complete(["unstructured", "2:4", "4:8", "N:8"]),
        ),
    ] = PRUNE.pattern,
    allocation: Annotated[
        str | None,
        pruning(
            help=f"How sparsity is distributed across blocks: {', '.join(ALLOCATIONS)}. Or the mean of several: "
            "`ramp+farms`, with weights `ramp:0.7+farms:0.3`  [default: farms, or uniform with --recover]",
            autocompletion=complete(ALLOCATIONS),
        ),
    ] = None,
    granularity: Annotated[
        str,
        pruning(
            help="`block`: one sparsity for all layers of a block; `layer`: each role (q, k, ..., down) is distributed "
            "across blocks by itself.",
            autocompletion=complete(GRANULARITIES),
        ),
    ] = PRUNE.granularity,
    spread: Annotated[
        float | None,
        pruning(
            help="How much block sparsities may differ: relative to their mean, up and down; for owl and dlp the "
            f"highest minus the lowest  [default: {SPREADS}; in a mixture that of each part]"
        ),
    ] = PRUNE.spread,
    ends: Annotated[
        str,
        pruning(
            help="How the alphas or scores of the first and the last block count: as `measured`; as the `lowest` or "
            "the `median` of the others; `apart`: these blocks get the total sparsity; `first-...`: the first block "
            "only.",
            autocompletion=complete(ENDS),
        ),
    ] = PRUNE.ends,
    refine: Annotated[
        str,
        pruning(
            help="`swaps`: swap kept and removed weights of a row while the output error falls, ten or more times as "
            "long as a prune.",
            autocompletion=complete(REFINEMENTS),
        ),
    ] = PRUNE.refine,
    damping: Annotated[
        float, pruning(help="SparseGPT: addition to the diagonal of the Hessian, in units of its mean.")
    ] = PRUNE.damping,
    block_size: Annotated[
        int, pruning(help="SparseGPT: columns whose weights are compared at once.")
    ] = PRUNE.block_size,
    recover: Annotated[
        str,
        pruning(
            help="Adjust the kept weights after pruning, zeros fixed: `none`; `submodule`: fit attention and MLP of "
            "each block to the dense outputs, about 30 times as long as a prune; `distill`: then train all of "
            "them to predict as the dense model does, about twice that, in the memory of full fine-tuning.",
            autocompletion=complete(RECOVERIES),
        ),
    ] = PRUNE.recover,
    recover_passes: Annotated[
        int | None,
        pruning(
            help="Passes of the recovery over the calibration data; with `distill` of its training, before which "
            f"blocks are fitted with the default of `submodule`  [default: {PASSES}]"
        ),
    ] = PRUNE.recover_passes,
    recover_rate: Annotated[
        float | None,
        pruning(
            help="Largest learning rate of the recovery, with `distill` of its training, relative to the size of the "
            f"weights  [default: {RATES}]"
        ),
    ] = PRUNE.recover_rate,
    recover_budget: Annotated[
        float | None,
        pruning(
            help="`distill`: train heads and channels selected by S²FT, this fraction of the parameters, in less memory"
            "  [default: all kept weights]"
        ),
    ] = PRUNE.recover_budget,
    minutes: Annotated[
        float | None,
        pruning(
            help="Time limit of the search of `auto`, which then takes the best so far; without one it takes about "
            "20 times as long as a prune. May change when an interrupted run is resumed  [default: none]"
        ),
    ] = PRUNE.minutes,
    calibration: Annotated[
        str,
        calibrating(
            help="`speeches` (inside the package), `self` (written by the model), a text file, a table (JSON, JSONL, "
            "CSV, TSV, parquet, Arrow), or a dataset id."
        ),
    ] = TEXT.source,
    calibration_column: Annotated[str, calibrating(help="Text column of a table or dataset.")] = TEXT.column,
    calibration_subset: Annotated[str | None, calibrating(help="Configuration of a Hub dataset.")] = TEXT.subset,
    calibration_split: Annotated[str, calibrating(help="Split of a Hub dataset.")] = TEXT.split,
    calibration_samples: Annotated[int, calibrating(help="Number of sequences.")] = TEXT.num_sequences,
    calibration_length: Annotated[int, calibrating(help="Tokens per sequence.")] = TEXT.sequence_length,
    calibration_continuations: Annotated[
        int | None,
        calibrating(
            help="Number of sequences beside them that the dense model writes, as continuations  [default: for a "
            "recovery three of each, up to 128 sequences in all; 0 without a recovery, with `--calibration self`, and "
            "if the model is streamed or cannot generate text]"
        ),
    ] = TEXT.num_continuations,
    seed: Annotated[int, calibrating(help="Seed of the calibration sequences.")] = TEXT.seed,
    select_on: Annotated[
        str,
        selecting(
            help="Text that an allocation is chosen, and a recovery accepted, on, as for --calibration and another "
            "one; `speeches`: a part of it that is used for nothing else."
        ),
    ] = SELECT.source,
    select_column: Annotated[str, selecting(help="Text column of a table or dataset.")] = SELECT.column,
    select_subset: Annotated[str | None, selecting(help="Configuration of a Hub dataset.")] = SELECT.subset,
    select_split: Annotated[str, selecting(help="Split of a Hub dataset.")] = SELECT.split,
    select_length: Annotated[int, selecting(help="Tokens per sequence.")] = SELECT.sequence_length,
    evaluation: Annotated[str, evaluating(help="Text for perplexity, as for --calibration; `none` to skip it.")] = str(
        TEST.source
    ),
    evaluation_column: Annotated[str, evaluating(help="Text column of a table or dataset.")] = TEST.column,
    evaluation_subset: Annotated[str | None, evaluating(help="Configuration of a Hub dataset.")] = TEST.subset,
    evaluation_split: Annotated[str, evaluating(help="Split of a Hub dataset.")] = TEST.split,
    evaluation_windows: Annotated[int, evaluating(help="Number of windows, from the start of the text; 0: all.")] = (
        TEST.max_windows or 0
    ),
    context_length: Annotated[int, evaluating(help="Tokens per window.")] = TEST.context_length,
    output: Annotated[
        Path | None,
        writing(
            "-o",
            "--output",
            help="Folder  [default: ./<model>-<allocation>-<method>-<percent>; next to MODEL, or to the folder of a "
            "recipe, if run inside it]",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        writing(
            "--overwrite",
            help="Replace an earlier result or unfinished work of other settings; never files of others.",
        ),
    ] = False,
    # Not a setting of the recipe: the weights are the same, but for a search with a recovery, where a note says so.
    baseline: Annotated[
        bool,
        writing(
            "--baseline/--no-baseline",
            help="Also measure the perplexity of uniform sparsity; prunes a second time. After a search with a "
            "recovery by submodule, the better of both is the result.",
        ),
    ] = True,
    push: Annotated[bool, pushing("--push", help="Upload the result to the Hub.")] = False,
    repo_id: Annotated[
        str | None, pushing(help="Repository for --push  [default: <user>/<name of the output folder>]")
    ] = None,
    private: PrivateOption = None,
    create_pr: RequestOption = False,
    push_revision: BranchOption = None,
    commit_message: MessageOption = None,
    yes: ForeignOption = False,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Prune a model: analyze its layers, zero the least important weights, re-evaluate, and write a model card.

    `accelerate launch --multi_gpu -m hf_farms_cli prune MODEL` shares the work over several GPUs.

    Examples:
    hf-farms prune demo
    hf-farms prune meta-llama/Llama-2-7b --push
    hf-farms prune Qwen/Qwen3-0.6B --sparsity 0.6 --push --repo-id my-org/qwen3-sparse --private
    hf-farms prune Qwen/Qwen3-0.6B --push --dry-run
    """
    output_format = check_format(format_, quiet, json_)
    if not push and (options := given(context, panels=[HUB], but=["push", "token"])):
        raise UsageError(f"{options[0]} must be used with --push, got it without. Add --push, or leave it out.")
    check_branch(push_revision, create_pr)
    recipe, file = recipe_for(context, model)
    with usage():
        load = LoadOptions(device=device, stream=stream, allow_pickle=allow_pickle)
    check_repo_id(repo_id)
    use_token(token)
    from hf_farms.workflows.prune_plan import plan_prune

    plan = plan_prune(recipe, with_home(output), load=load, baseline=baseline, overwrite=overwrite, recipe_file=file)
    target = None
    if push:
        from hf_farms.workflows.push import plan_result_push

        target = plan_result_push(
            plan,
            repo_id,
            private=private,
            create_pr=create_pr,
            revision=push_revision,
            allow_foreign_files=yes,
            unreachable_ok=dry_run,
        )
    if plan.finished is not None:
        print_remark(f"{plan.output.path} is finished already: nothing was pruned.", output_format)
    # A plan without either needs no torch.
    if not dry_run or device is not None or dtype != "auto":
        check_device(device, dtype)
    if dry_run:
        print_plan(prune_plan(plan, target), output_format)
        return
    run_and_print(plan, target, output_format, private=private, commit_message=commit_message, yes=yes)
