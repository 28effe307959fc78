"""`hf-farms card DIR`: README.md and figures again, from the report of a pruned or trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_farms_cli.console import check_format, guarded, print_done, say
from hf_farms_cli.effects import CardOptions, warn_unused_options
from hf_farms_cli.options import (
    DebugOption,
    FormatOption,
    JsonOption,
    QuietOption,
    TokenOption,
    YesOption,
    check_repo_id,
)

__all__ = ["card_command"]


@guarded
def card_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder written by `hf-farms prune` or by a training with a callback.")
    ],
    repo_id: Annotated[
        str | None,
        typer.Option(help="Repository named in the card  [default: that of the card in DIR, else the folder's name]"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the card to this file instead; `-` prints it."),
    ] = None,
    yes: YesOption = False,
    token: TokenOption = None,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Regenerate the model card of a folder, README.md and its figures, from hf_farms_report.json.

    For a training without a report, the card is made from the files that the callbacks wrote. A card, and figures
    beside a new one, that hf-farms did not write are replaced only with --yes.

    Examples:
        hf-farms card ./demo-farms-wanda-50
        hf-farms card ./demo-farms-wanda-50 --repo-id me/demo-sparse
        hf-farms card ./trained -o -
    """
    output_format = check_format(format_, quiet, json_)
    check_repo_id(repo_id)
    warn_unused_options(CardOptions(yes=yes, output=output))
    from hf_farms.files.paths import with_name
    from hf_farms.workflows.card import folder_card, write_folder_card

    folder = Path(with_name(str(folder)))
    if output == "-":
        say(folder_card(folder, repo_id=repo_id, token=token), newline=False)
        return
    target = Path(output).expanduser() if output is not None else None
    written = write_folder_card(folder, repo_id=repo_id, target=target, overwrite=yes, token=token)
    print_done("Card written", output_format, card=written)
