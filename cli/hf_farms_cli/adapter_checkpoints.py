"""`hf-farms adapter merge|unmerge|diff`: the options. The work is in workflows/adapter_checkpoints.py."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hf_farms_cli.adapter_options import AdapterArgument, IncludeBaseOption, OutputOption
from hf_farms_cli.console import check_format, guarded, print_done, quiet_transformers, stages
from hf_farms_cli.options import DebugOption, FormatOption, JsonOption, QuietOption, model_argument

__all__ = ["diff_command", "merge_command", "unmerge_command"]

BaseRevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")]


def base_argument(metavar: str, text: str) -> Any:
    """Return an argument for a model, with the completion of MODEL."""
    argument = model_argument()
    argument.metavar, argument.help = metavar, text
    return argument


@guarded
def merge_command(
    base: Annotated[str, base_argument("BASE", "Base model: Hub id, folder, `demo` or `demo-healthy`.")],
    adapter: AdapterArgument,
    output: OutputOption,
    revision: BaseRevisionOption = None,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Merge an adapter into a copy of a checkpoint.

    The copy is written shard by shard, without loading the model. Its weights are those of the trained model, bit for
    bit. Config, tokenizer and license files are copied.

    Examples:
        hf-farms adapter merge Qwen/Qwen3-0.6B ./math -o merged
        hf-farms adapter merge ./base me/math -o merged
    """
    output_format = check_format(format_, quiet, json_)
    from hf_farms.workflows.adapter_checkpoints import merge_checkpoint

    quiet_transformers()
    with stages(output_format) as progress:
        folder = merge_checkpoint(base, adapter, output, revision=revision, progress=progress)
    print_done("Merged", output_format, folder=folder)


@guarded
def unmerge_command(
    model: Annotated[str, base_argument("MODEL", "Model with the adapter merged into it: Hub id or folder.")],
    adapter: AdapterArgument,
    output: OutputOption,
    revision: BaseRevisionOption = None,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Take a merged adapter out of a copy of a checkpoint.

    The weights of the copy are those of the base model, bit for bit; the adapter must hold the slices of its base.

    Examples:
        hf-farms adapter unmerge merged ./math -o base
    """
    output_format = check_format(format_, quiet, json_)
    from hf_farms.workflows.adapter_checkpoints import unmerge_checkpoint

    quiet_transformers()
    with stages(output_format) as progress:
        folder = unmerge_checkpoint(model, adapter, output, revision=revision, progress=progress)
    print_done("Unmerged", output_format, folder=folder)


@guarded
def diff_command(
    base: Annotated[str, base_argument("BASE", "Base model: Hub id, folder, `demo` or `demo-healthy`.")],
    tuned: Annotated[str, base_argument("TUNED", "Fine-tuned model: Hub id or folder.")],
    output: OutputOption,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of BASE on the Hub.")] = None,
    tuned_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of TUNED on the Hub.")] = None,
    include_base: IncludeBaseOption = True,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Make an adapter of a fine-tuned checkpoint and its base.

    They must differ in whole channels of the weights, and are compared tensor by tensor; neither model is loaded.

    Examples:
        hf-farms adapter diff Qwen/Qwen3-0.6B ./trained -o math
        hf-farms adapter diff Qwen/Qwen3-0.6B me/trained --tuned-revision v2 -o math
    """
    output_format = check_format(format_, quiet, json_)
    from hf_farms.workflows.adapter_checkpoints import diff_checkpoints

    quiet_transformers()
    with stages(output_format) as progress:
        adapter = diff_checkpoints(
            base,
            tuned,
            output,
            revision=revision,
            tuned_revision=tuned_revision,
            include_base=include_base,
            progress=progress,
        )
    channels = sum(len(patch.indices) for patch in adapter.patches.values())
    print_done(
        f"Adapter of {channels:,} channels in {len(adapter)} weights written",
        output_format,
        folder=output.expanduser(),
        weights=len(adapter),
        channels=channels,
    )
