"""`hf-farms adapter ...`: the group, and the options of the commands on folders of adapters.

adapter_checkpoints.py   merge, unmerge and diff
adapter_options.py       options of several of them
adapter_tables.py        output
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_farms.registries import COMBINATIONS
from hf_farms_cli.adapter_checkpoints import diff_command, merge_command, unmerge_command
from hf_farms_cli.adapter_options import AdapterArgument, IncludeBaseOption, OutputOption
from hf_farms_cli.console import check_format, guarded, if_interrupted, print_done, quiet_transformers
from hf_farms_cli.dry_run import print_plan, push_plan
from hf_farms_cli.groups import CommandGroup, examples
from hf_farms_cli.options import (
    HUB,
    BranchOption,
    DebugOption,
    DryRunOption,
    ForeignOption,
    FormatOption,
    JsonOption,
    MessageOption,
    PrivateOption,
    QuietOption,
    RequestOption,
    TokenOption,
    check_branch,
    check_repo_id,
    complete,
    use_token,
)

__all__ = ["adapter_commands"]

adapter_commands = CommandGroup(
    name="adapter",
    epilog=examples("hf-farms adapter info ./math\nhf-farms adapter merge Qwen/Qwen3-0.6B ./math -o merged"),
)


@adapter_commands.callback()
def adapter_group() -> None:
    """Inspect, merge, fuse, export and push adapters of S²FT."""


@adapter_commands.command("info")
@guarded
def info_command(
    adapter: AdapterArgument,
    layers: Annotated[bool, typer.Option("--layers", help="Print one row per weight.")] = False,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Print base model, weights, channels and bytes of an adapter.

    Examples:
        hf-farms adapter info ./math
        hf-farms adapter info me/math --layers
        hf-farms adapter info ./math --json
    """
    output_format = check_format(format_, quiet, json_)
    from hf_farms.workflows.adapter_folders import describe_adapter
    from hf_farms_cli.adapter_tables import print_adapter

    print_adapter(adapter, describe_adapter(adapter), output_format, by_weight=layers)


adapter_commands.command("merge")(merge_command)
adapter_commands.command("unmerge")(unmerge_command)


@adapter_commands.command("fuse")
@guarded
def fuse_command(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="Folders or Hub ids, at least two.")],
    output: OutputOption,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of an adapter; given once for each, in their order  [default: 1 each]"),
    ] = None,
    combination: Annotated[
        str,
        typer.Option(
            help=f"Rule for channels that several adapters change: {', '.join(COMBINATIONS)}.",
            autocompletion=complete(tuple(COMBINATIONS)),
        ),
    ] = "linear",
    density: Annotated[float | None, typer.Option(help="Share of the entries that pruning combinations keep.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random combinations.")] = None,
    include_base: IncludeBaseOption = True,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Make one adapter of several of the same base.

    Adapters without common channels are fused exactly; the share of common channels is printed.

    Examples:
        hf-farms adapter fuse ./math ./code -o both
        hf-farms adapter fuse ./math ./code -o both --weight 0.7 --weight 0.3
        hf-farms adapter fuse ./math ./code -o both --combination ties --density 0.5
    """
    output_format = check_format(format_, quiet, json_)
    from hf_farms.workflows.adapter_folders import fuse_adapters
    from hf_farms_cli.adapter_tables import print_overlaps

    fused = fuse_adapters(
        adapters,
        output,
        weights=weight or None,
        combination=combination,
        density=density,
        seed=seed,
        include_base=include_base,
    )
    print_overlaps(fused, output_format)


@adapter_commands.command("export")
@guarded
def export_command(
    adapter: AdapterArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder of the LoRA.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model: Hub id, folder or `demo`. SGLang needs it, and adapters saved without base."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the LoRA; `auto`: float32, which is exact.")] = "auto",
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write an adapter as a LoRA for PEFT, vLLM and SGLang.

    Prints its size and the options to start a server with. The LoRA is exact, and larger than the adapter.

    Examples:
        hf-farms adapter export ./math -o lora
        hf-farms adapter export ./math -o lora --base Qwen/Qwen3-0.6B
    """
    output_format = check_format(format_, quiet, json_)
    from hf_farms.workflows.adapter_folders import export_adapter
    from hf_farms_cli.adapter_tables import print_export

    quiet_transformers()
    print_export(export_adapter(adapter, output, base=base, dtype=dtype), output_format)


adapter_commands.command("diff")(diff_command)


@adapter_commands.command("push")
@guarded
def push_adapter_command(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of an adapter.")],
    repo_id: Annotated[
        str | None,
        typer.Option(help="Repository  [default: <user>/<name of ADAPTER>]", show_default=False, rich_help_panel=HUB),
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
    """Upload an adapter to the Hub, with a card.

    Other files of its folder are not uploaded.

    Examples:
        hf-farms adapter push ./math
        hf-farms adapter push ./math --repo-id my-org/math --private
        hf-farms adapter push ./math --create-pr --dry-run
    """
    output_format = check_format(format_, quiet, json_)
    check_repo_id(repo_id)
    check_branch(push_revision, create_pr)
    use_token(token)
    from hf_farms import hub
    from hf_farms.files.paths import with_name
    from hf_farms.workflows.adapter_push import planned_push

    folder = Path(with_name(str(adapter)))
    with planned_push(
        folder,
        repo_id,
        private=private,
        create_pr=create_pr,
        revision=push_revision,
        allow_foreign_files=yes,
        unreachable_ok=dry_run,
    ) as checked:
        if dry_run:
            print_plan(push_plan(checked.plan), output_format)
            return
        with if_interrupted("Run the same command again to upload the rest."):
            url = hub.push(checked.folder, commit_message=commit_message, plan=checked.plan)
    print_done(f"Pushed {folder}", output_format, url=url)
