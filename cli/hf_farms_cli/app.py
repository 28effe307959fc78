"""The typer application and the entry point of the console script."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_farms.privacy.masking import mask_secrets
from hf_farms_cli.analyze import analyze_command
from hf_farms_cli.card import card_command
from hf_farms_cli.env import env_command
from hf_farms_cli.eval import eval_command
from hf_farms_cli.help import Command
from hf_farms_cli.prune import prune_command
from hf_farms_cli.push import push_command

__all__ = ["CommandGroup", "app", "main"]


class _Group(TyperGroup):
    """Parses the command line; secrets that its error messages quote are masked."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _masked():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _masked():
            return super().invoke(ctx)


@contextmanager
def _masked() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # their class is not public
        if isinstance(message := getattr(error, "message", None), str):
            error.message = mask_secrets(message)  # type: ignore[attr-defined]
        raise


class CommandGroup(typer.Typer):
    """Commands whose help is their docstring, with its `Examples:` at the end, after the options."""

    def __init__(self, **options: Any) -> None:
        # Help without boxes, as that of `hf`: it is read by programs too, and starts without rich.
        options = {"rich_markup_mode": None, "no_args_is_help": True, "pretty_exceptions_enable": False, **options}
        options.setdefault("cls", _Group)
        super().__init__(context_settings={"help_option_names": ["-h", "--help"]}, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Add a function as a command."""
        register = super().command

        def add(function: Any) -> Any:
            text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("Examples:")
            return register(name, **{"cls": Command, "help": text, "epilog": _examples(examples), **options})(function)

        return add


def _examples(text: str) -> str:
    # \b keeps the lines as they are.
    return "\b\nExamples:\n" + "\n".join(f"  $ {line.strip()}" for line in text.splitlines() if line.strip())


app = CommandGroup(
    name="hf-farms",
    epilog=_examples("hf-farms analyze demo\nhf-farms prune demo\nhf-farms prune meta-llama/Llama-2-7b --push"),
)
app.command("analyze")(analyze_command)
app.command("prune")(prune_command)
app.command("push")(push_command)
app.command("eval")(eval_command)
app.command("card")(card_command)
app.command("env")(env_command)


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
