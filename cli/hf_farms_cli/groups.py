"""Groups of commands: help from docstrings, with examples at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from hf_farms_cli.help import Command
from hf_farms_cli.wrong_lines import explain

__all__ = ["CommandGroup", "examples"]


class _Group(TyperGroup):
    """Parses the command line; errors of the parser are ours in form, and secrets in them are masked."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _our_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _our_errors():
            return super().invoke(ctx)


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # their classes are not public
        if isinstance(getattr(error, "message", None), str):
            explain(error)
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
            text, _, lines = inspect.cleandoc(function.__doc__ or "").partition("Examples:")
            return register(name, **{"cls": Command, "help": text, "epilog": examples(lines), **options})(function)

        return add


def examples(text: str) -> str:
    """Return the end of a help text: the commands, a line each."""
    # \b keeps the lines as they are.
    return "\b\nExamples:\n" + "\n".join(f"  $ {line.strip()}" for line in text.splitlines() if line.strip())
