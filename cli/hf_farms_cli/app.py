"""The typer application and the entry point of the console script."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from hf_farms_cli.analyze import analyze_command
from hf_farms_cli.prune import prune_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="hf-farms",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples:  hf-farms analyze demo  |  hf-farms prune demo  |  hf-farms prune meta-llama/Llama-2-7b --push",
)
app.command("analyze")(analyze_command)
app.command("prune")(prune_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("hf-farms"))
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the under-trained layers of a model and act on it."""


def main() -> None:
    """Run the command line."""
    app()
