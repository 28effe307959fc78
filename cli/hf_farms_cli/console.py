"""Output of all commands: formats, results, hints, notes and progress. Errors and warnings are in guard.py.

Data goes to stdout; progress, warnings, hints and errors go to stderr. The rules are those of the `hf` command.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from hf_farms.progress import Progress
from hf_farms_cli.guard import guarded, if_interrupted, shown_warnings
from hf_farms_cli.lost import printing
from hf_farms_cli.messages import in_options
from hf_farms_cli.options import FORMATS, Format
from hf_farms_cli.progress import Lines, bars, reported
from hf_farms_cli.streams import IS_MAIN, err, escaped, out, say

__all__ = [
    "IS_MAIN",
    "Format",
    "check_format",
    "err",
    "guarded",
    "if_interrupted",
    "out",
    "print_done",
    "print_estimate",
    "print_hint",
    "print_notes",
    "print_remark",
    "quiet_transformers",
    "say",
    "stages",
]


def check_format(name: str, quiet: bool, json: bool = False) -> Format:
    """Return the format of the output, and set it for both streams.

    Args:
        name: of --format; `auto` becomes `agent` where `hf` sees a coding agent, else `human`.
        quiet: -q, short for `quiet`.
        json: --json, short for `json`.
    """
    if name not in FORMATS:
        raise typer.BadParameter(f"--format must be one of {', '.join(FORMATS)}, got {name!r}.")
    given = {f"--format {name}": name != "auto", "--json": json, "-q": quiet}
    if sum(given.values()) > 1:
        options = " and ".join(option for option, is_given in given.items() if is_given)
        raise typer.BadParameter(f"--format must be given once, got {options}. Leave one out.")
    output_format: Any = "quiet" if quiet else "json" if json else name
    if output_format == "auto":
        # May fetch the list of known agents from the Hub once a day, as each `hf` command does.
        from huggingface_hub.utils import is_agent  # type: ignore[attr-defined]

        output_format = "agent" if is_agent() else "human"
    for stream in (out, err):
        stream.style(output_format == "human")
    if output_format != "human":
        _no_foreign_bars()
    return output_format  # type: ignore[no-any-return]


def _no_foreign_bars() -> None:
    """Switch off the progress bars of huggingface_hub and datasets."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings(action="ignore"):  # about an environment variable that has priority
        disable_progress_bars()


def print_done(message: str, output_format: Format, **fields: object) -> None:
    """Print a success and the location of its results; fields that are None are left out.

    Human: `✓ message` and a line per field. Agent: `field=value` in one line. JSON: the fields. Quiet: the first.
    """
    values = {name: str(value) for name, value in fields.items() if value is not None}
    if output_format == "json":
        say(json.dumps(values))
    elif output_format == "quiet":
        say(next(iter(values.values()), ""))
    elif output_format == "agent":
        say(" ".join(f"{name}={value}" for name, value in values.items()) or message)
    else:
        out.print(f"[green]{_tick()}[/green] {escaped(message)}")
        for name, value in values.items():
            out.print(f"  {name}: {value}", markup=False)


def _tick() -> str:
    try:
        with printing():
            "✓".encode(sys.stdout.encoding or "utf-8")
    except (LookupError, UnicodeEncodeError):
        return "[OK]"
    return "✓"


def print_hint(text: str, output_format: Format) -> None:
    """Print advice for the next step on stderr; nothing if quiet."""
    if output_format != "quiet":
        err.print(f"[dim]Hint:[/dim] {escaped(text)}")


def print_remark(text: str, output_format: Format) -> None:
    """Print a caption: below the table for people, on stderr for programs that read the table."""
    (out if output_format == "human" else err).print(text, markup=False)


def print_estimate(text: str) -> None:
    """Print the expected time of long work on stderr."""
    err.print(f"Estimate: {in_options(text).replace('`', '')}", markup=False)


def print_notes(notes: Sequence[str]) -> None:
    """Print the notes of a result on stderr, without those already printed as a warning."""
    for note in notes:
        if note not in shown_warnings:
            err.print(f"Note: {in_options(note)}", markup=False)


def quiet_transformers() -> None:
    """Switch off progress bars and log messages of transformers. Imports transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def stages(output: Format) -> Iterator[Progress]:
    """Show progress on stderr while open: bars on a terminal, lines elsewhere, nothing if quiet."""
    if output == "quiet" or not IS_MAIN:
        yield reported()
    elif output == "human" and err.is_terminal:
        with bars(err.console) as show:
            yield reported(show)
    else:
        lines = Lines(functools.partial(err.print, markup=False))
        try:
            yield reported(lines)
        finally:
            lines.close()
