"""What all commands share: output formats, warnings, errors and interrupts. Options are in options.py.

Data goes to stdout; progress, warnings, hints and errors go to stderr. The rules are those of the `hf` command.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec

import typer

from hf_farms.errors import ArgumentError, HfFarmsError, HfFarmsWarning
from hf_farms.hub.failure_budget import failure_budget
from hf_farms.privacy.masking import mask_error, mask_secrets
from hf_farms.progress import Progress
from hf_farms_cli.interrupts import interrupts
from hf_farms_cli.messages import in_options
from hf_farms_cli.options import FORMATS, Format
from hf_farms_cli.progress import Lines, bars, reported
from hf_farms_cli.streams import IS_MAIN, err, out, say

__all__ = [
    "IS_MAIN",
    "Format",
    "check_format",
    "err",
    "guarded",
    "if_interrupted",
    "out",
    "print_done",
    "print_hint",
    "print_notes",
    "print_remark",
    "quiet_transformers",
    "say",
    "stages",
]

P = ParamSpec("P")

# What a warning has said is not said again by a note.
_warned: set[str] = set()


def check_format(name: str, quiet: bool, json: bool = False) -> Format:
    """The format of the output, which is set for both streams.

    Args:
        name: of --format; `auto` becomes `agent` where `hf` sees a coding agent, else `human`.
        quiet: -q, short for `quiet`.
        json: --json, short for `json`.
    """
    if name not in FORMATS:
        raise typer.BadParameter(f"format must be one of {', '.join(FORMATS)}, got {name!r}.")
    given = {f"--format {name}": name != "auto", "--json": json, "-q": quiet}
    if sum(given.values()) > 1:
        options = " and ".join(option for option, is_given in given.items() if is_given)
        raise typer.BadParameter(f"format must be given once, got {options}. Leave one out.")
    shown: Any = "quiet" if quiet else "json" if json else name
    if shown == "auto":
        # May ask the Hub once a day which agents there are, as each `hf` command does.
        from huggingface_hub.utils import is_agent  # type: ignore[attr-defined]

        shown = "agent" if is_agent() else "human"
    for stream in (out, err):
        stream.style(shown == "human")
    if shown != "human":
        _no_foreign_bars()
    return shown  # type: ignore[no-any-return]


def _no_foreign_bars() -> None:
    """No progress bars of huggingface_hub and datasets."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings(action="ignore"):  # that an environment variable has priority
        disable_progress_bars()


def print_done(message: str, shown: Format, **fields: object) -> None:
    """Say what was done and where it is; None is left out.

    Human: `✓ message` and a line per field. Agent: `field=value` in one line. JSON: the fields. Quiet: the first.
    """
    found = {name: str(value) for name, value in fields.items() if value is not None}
    if shown == "json":
        say(json.dumps(found))
    elif shown == "quiet":
        say(next(iter(found.values()), ""))
    elif shown == "agent":
        say(" ".join(f"{name}={value}" for name, value in found.items()) or message)
    else:
        out.print(f"[green]{_tick()}[/green] {_plain(message)}")
        for name, value in found.items():
            out.print(f"  {name}: {value}", markup=False)


def _tick() -> str:
    try:
        "✓".encode(sys.stdout.encoding or "utf-8")
    except (LookupError, UnicodeEncodeError):
        return "[OK]"
    return "✓"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def print_hint(text: str, shown: Format) -> None:
    """What may help next, on stderr; nothing if quiet."""
    if shown != "quiet":
        err.print(f"[dim]Hint:[/dim] {_plain(text)}")


def print_remark(text: str, shown: Format) -> None:
    """What belongs to a table: below it for people, on stderr for programs that read the table."""
    (out if shown == "human" else err).print(text, markup=False)


def print_notes(notes: Sequence[str]) -> None:
    """What a reader must know of a result, on stderr."""
    for note in notes:
        if note not in _warned:
            err.print(f"Note: {in_options(note)}", markup=False)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn expected errors into one sentence and exit status 1, or 2 for a wrong command line.

    `--debug` keeps the traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        try:
            with _quiet_libraries(debug), failure_budget():
                command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            _say_interrupted(interrupt)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output (such as `head`) has seen enough; nothing may be flushed to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            mask_error(error)
            if debug:
                raise
            if interrupts.asked:
                _say_interrupted(error)
                raise typer.Exit(130) from None
            _explain(error)
            raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from None

    return run


def _say_interrupted(error: BaseException) -> None:
    interrupts.said = True
    err.print(" ".join(["Interrupted.", *getattr(error, "__notes__", ())]), markup=False)


def _explain(error: Exception) -> None:
    hint = getattr(error, "hint", None)
    if type(error).__name__ == "OutOfMemoryError":  # of torch, for any device
        hint = "Free memory of the device, or choose another --device."
    elif not isinstance(error, (HfFarmsError, ValueError, OSError)):
        err.print(traceback.format_exc(), markup=False)
        hint = "This should not happen. Report it with the output of `hf-farms env`."
    err.print(f"[red]Error:[/red] {_plain(in_options(' '.join(str(error).split())))}")
    if hint:
        err.print(f"[dim]Hint:[/dim] {_plain(in_options(hint))}")


@contextmanager
def if_interrupted(sentence: str, *, there: Path | None = None) -> Iterator[None]:
    """What Ctrl-C leaves behind, and how to go on.

    Args:
        sentence: shown after "Interrupted."
        there: the unfinished work; without it nothing is said.
    """
    try:
        yield
    except BaseException as error:
        if (interrupts.asked or isinstance(error, KeyboardInterrupt)) and (there is None or there.exists()):
            error.add_note(sentence)
        raise


@contextmanager
def _quiet_libraries(debug: bool) -> Iterator[None]:
    """Our own warnings as a line on stderr; those of other libraries only with `--debug`."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, HfFarmsWarning):
            _warned.add(str(message))
            err.print(f"[yellow]Warning:[/yellow] {_plain(in_options(str(message)))}")
        elif debug:
            err.print(f"{category.__name__}: {message}", markup=False)

    _warned.clear()
    with warnings.catch_warnings(), _masked_logs():
        warnings.showwarning = show
        yield


@contextmanager
def _masked_logs() -> Iterator[None]:
    """No secrets in what libraries log, such as the URL of a request that is made again."""
    make = logging.getLogRecordFactory()

    def masked(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        # Of arguments that do not fit, logging itself says so.
        with suppress(TypeError, ValueError):
            record.msg, record.args = mask_secrets(record.getMessage()), ()
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            mask_error(record.exc_info[1])
        return record

    logging.setLogRecordFactory(masked)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


def quiet_transformers() -> None:
    """No progress bars and remarks of transformers between ours. Imports transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def stages(output: Format) -> Iterator[Progress]:
    """Show progress on stderr while open: bars on a terminal, lines elsewhere, nothing if quiet."""
    if output == "quiet" or not IS_MAIN:
        yield reported()
    elif output == "human" and err.is_terminal:
        with bars(err.console) as shown:
            yield reported(shown)
    else:
        yield reported(Lines(functools.partial(err.print, markup=False)))
