"""The typer application and the entry point of the console script."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from hf_farms_cli.adapter import adapter_commands
from hf_farms_cli.analyze import analyze_command
from hf_farms_cli.card import card_command
from hf_farms_cli.env import env_command
from hf_farms_cli.eval import eval_command
from hf_farms_cli.groups import CommandGroup, examples
from hf_farms_cli.prune import prune_command
from hf_farms_cli.push import push_command

__all__ = ["CommandGroup", "app", "main"]


app = CommandGroup(
    name="hf-farms",
    epilog=examples("hf-farms analyze demo\nhf-farms prune demo\nhf-farms prune meta-llama/Llama-2-7b --push"),
)
# Short enough for a list of commands in 80 columns.
app.command("analyze", short_help="Measure alpha of every layer and block.")(analyze_command)
app.command("prune", short_help="Measure, prune and evaluate a model; write a card.")(prune_command)
app.command("push", short_help="Upload a finished folder, or resume an upload.")(push_command)
app.command("eval")(eval_command)
app.command("card", short_help="Write the model card of a folder again.")(card_command)
app.command("env")(env_command)
app.add_typer(adapter_commands, name="adapter")


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(version("hf-farms"))
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("-v", "--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the under-trained layers of a model and act on it."""


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal lacks must not end the work.
            stream.reconfigure(errors="replace")
    app()
