"""Errors, warnings and interrupts of a command: one line each on stderr, and the exit status."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec

import typer

from hf_farms.errors import ArgumentError, HfFarmsError, HfFarmsWarning
from hf_farms.hub.failure_budget import failure_budget
from hf_farms.privacy.masking import mask_error, mask_secrets
from hf_farms.processes import launched_processes, leave_ranks, working_ranks
from hf_farms_cli.interrupts import interrupts
from hf_farms_cli.lost import libraries_to_stderr
from hf_farms_cli.messages import in_options, names_here, with_option
from hf_farms_cli.streams import err, escaped

__all__ = ["guarded", "if_interrupted", "shown_warnings"]

P = ParamSpec("P")

# Commands that several processes carry out together, by the names of their functions.
SHARED_COMMANDS = ("prune_command", "analyze_command")
# Messages of the warnings that this command has printed.
shown_warnings: set[str] = set()


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn expected errors into one sentence and exit status 1, or 2 for a wrong argument.

    With `--debug` they keep their traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        try:
            with _quiet_libraries(debug), libraries_to_stderr(), failure_budget(), _among_processes(command.__name__):
                command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            _print_interrupt(interrupt)
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
            if interrupts.received:
                _print_interrupt(error)
                raise typer.Exit(130) from None
            _print_error(error)
            raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from None

    return run


@contextmanager
def _among_processes(command: str) -> Iterator[None]:
    """Raise an error of one of several launched processes on all of them, so that the first one prints it.

    Raises:
        HfFarmsError: this command works in one process.
    """
    if launched_processes() == 1:
        yield
        return
    if command not in SHARED_COMMANDS:
        raise HfFarmsError(
            f"processes must be one for this command, got {launched_processes()}.",
            hint="Start it without accelerate launch, or unset WORLD_SIZE. Only prune and analyze share work.",
        )
    with working_ranks().failing_together():
        yield
    leave_ranks()


def _print_interrupt(error: BaseException) -> None:
    interrupts.reported = True
    err.print(" ".join(["Interrupted.", *getattr(error, "__notes__", ())]), markup=False)


def _print_error(error: Exception) -> None:
    hint = getattr(error, "hint", None)
    if type(error).__name__ == "OutOfMemoryError":  # of torch, for any device
        hint = "Free memory of the device, or choose another --device."
    elif not isinstance(error, (HfFarmsError, ValueError, OSError)):
        err.print(traceback.format_exc(), markup=False)
        hint = "This should not happen. Report it with the output of `hf-farms env`."
    message = with_option(" ".join(str(error).split()), names_here.get())
    err.print(f"[red]Error:[/red] {escaped(in_options(message))}")
    if hint:
        err.print(f"[dim]Hint:[/dim] {escaped(in_options(hint))}")


@contextmanager
def if_interrupted(sentence: str, *, unfinished: Path | None = None) -> Iterator[None]:
    """Add a sentence to the message of an interrupt, such as the path of the unfinished work.

    Args:
        sentence: printed after "Interrupted."
        unfinished: path of the unfinished work; nothing is added if it does not exist.
    """
    try:
        yield
    except BaseException as error:
        if (interrupts.received or isinstance(error, KeyboardInterrupt)) and (
            unfinished is None or unfinished.exists()
        ):
            error.add_note(sentence)
        raise


@contextmanager
def _quiet_libraries(debug: bool) -> Iterator[None]:
    """Print our own warnings as a line on stderr, and those of other libraries only with `--debug`."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, HfFarmsWarning):
            shown_warnings.add(str(message))
            err.print(f"[yellow]Warning:[/yellow] {escaped(in_options(str(message)))}")
        elif debug:
            err.print(f"{category.__name__}: {message}", markup=False)

    shown_warnings.clear()
    with warnings.catch_warnings(), _masked_logs():
        warnings.showwarning = show
        yield


@contextmanager
def _masked_logs() -> Iterator[None]:
    """Mask secrets in the log messages of libraries, such as the URL of a request that is repeated."""
    make = logging.getLogRecordFactory()

    def masked(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        # logging itself reports arguments that do not fit the message.
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
