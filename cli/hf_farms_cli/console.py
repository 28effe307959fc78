"""What all commands share: output formats, progress, warnings and errors.

Data goes to stdout; progress, warnings, hints and errors go to stderr.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hf_farms.errors import HfFarmsError, HfFarmsWarning
from hf_farms.parallel import is_main_process

__all__ = [
    "IS_MAIN",
    "Format",
    "Stages",
    "check_format",
    "err",
    "guarded",
    "out",
    "print_notes",
    "quiet_transformers",
    "say",
    "stages",
]

Format = Literal["human", "json", "quiet"]
P = ParamSpec("P")

# Of several launched processes one speaks.
IS_MAIN = is_main_process()
out = Console(highlight=False, quiet=not IS_MAIN)
err = Console(stderr=True, highlight=False, quiet=not IS_MAIN)
# What a warning has said is not said again by a note.
_warned: set[str] = set()


def say(text: str, *, newline: bool = True) -> None:
    """Print data to stdout as it is."""
    if IS_MAIN:
        typer.echo(text, nl=newline)


def print_notes(notes: Sequence[str]) -> None:
    """What a reader must know of a result, on stderr."""
    for note in notes:
        if note not in _warned:
            err.print(f"Note: {escape(note)}", soft_wrap=True)


def check_format(name: str, quiet: bool) -> Format:
    """The output format asked for; `-q` is short for `--format quiet`."""
    if quiet:
        return "quiet"
    for known in get_args(Format):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {name!r}.")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn expected errors into one sentence and exit status 1; `--debug` keeps the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        try:
            with _quiet_libraries(debug):
                command(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("Interrupted. Unfinished work, if any, is in the folder that ends in .partial.")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output (such as `head`) has seen enough; nothing may be flushed to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (HfFarmsError, ValueError, OSError) as error:
            if debug:
                raise
            err.print(f"[red]Error:[/red] {escape(' '.join(str(error).split()))}", soft_wrap=True)
            if hint := getattr(error, "hint", None):
                err.print(f"[dim]Hint:[/dim] {escape(hint)}", soft_wrap=True)
            raise typer.Exit(1) from None

    return run


@contextmanager
def _quiet_libraries(debug: bool) -> Iterator[None]:
    """Our own warnings as a line on stderr; those of other libraries only with `--debug`."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, HfFarmsWarning):
            _warned.add(str(message))
            err.print(f"[yellow]Warning:[/yellow] {escape(str(message))}", soft_wrap=True)
        elif debug:
            err.print(f"{category.__name__}: {escape(str(message))}", soft_wrap=True)

    _warned.clear()
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def quiet_transformers() -> None:
    """No progress bars and remarks of transformers between ours. Imports transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Stages:
    """Progress bars that appear with the first step of each stage; the `progress` of library functions."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of one stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def of(self, stage: str) -> Callable[[int, int], None]:
        """The same for a function that knows only one stage."""
        return functools.partial(self, stage)


@contextmanager
def stages(output: Format) -> Iterator[Stages]:
    """Show progress on stderr while open, unless quiet or not on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=output == "quiet" or not err.is_terminal) as progress:
        yield Stages(progress)
