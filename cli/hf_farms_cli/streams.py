"""stdout and stderr of all commands."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import typer

from hf_farms.privacy.masking import mask_secrets
from hf_farms.processes import is_main_process
from hf_farms_cli.lost import printing

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["IS_MAIN", "Stream", "err", "escaped", "out", "say"]

# Only the first of several launched processes prints.
IS_MAIN = is_main_process()


class Stream:
    """stdout or stderr. The first line imports rich; styles are for people at a terminal."""

    def __init__(self, *, stderr: bool) -> None:
        self._stderr, self._styled = stderr, True
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The console of rich that prints."""
        if self._console is None:
            from rich.console import Console

            colors = "auto" if self._styled else None
            self._console = Console(stderr=self._stderr, highlight=False, quiet=not IS_MAIN, color_system=colors)  # type: ignore[arg-type]
        return self._console

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking at it."""
        with self._reached():
            return self._styled and self.console.is_terminal

    def _reached(self) -> AbstractContextManager[None]:
        return nullcontext() if self._stderr else printing()

    def style(self, allowed: bool) -> None:
        """Allow or forbid colors and bars."""
        if allowed != self._styled:
            self._styled, self._console = allowed, None

    def print(self, text: RenderableType, *, markup: bool = True, soft_wrap: bool = True) -> None:
        """Print text without wrapping, with secrets masked; or anything that rich can draw."""
        if isinstance(text, str):
            text = mask_secrets(text)
        try:
            with self._reached():
                self.console.print(text, markup=markup, soft_wrap=soft_wrap)
        except BrokenPipeError:
            raise
        except OSError:
            pass  # stderr: a broken progress display must not end the work


out, err = Stream(stderr=False), Stream(stderr=True)


def escaped(text: str) -> str:
    """Return text that rich prints as it is, brackets included."""
    from rich.markup import escape

    return escape(text)


def say(text: str, *, newline: bool = True) -> None:
    """Print data to stdout as it is, with secrets masked."""
    if IS_MAIN:
        with printing():
            typer.echo(mask_secrets(text), nl=newline)
