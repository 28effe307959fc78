"""Options that several commands share, each declared once: `format_: FormatOption = "auto"`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, get_args

import typer

from hf_farms.errors import ArgumentError

__all__ = [
    "CALIBRATION",
    "EVALUATION",
    "FORMATS",
    "HUB",
    "MODEL",
    "OUTPUT",
    "PRUNING",
    "RESULT",
    "AllowPickleOption",
    "BranchOption",
    "DebugOption",
    "DeviceOption",
    "DryRunOption",
    "DtypeOption",
    "ForeignOption",
    "Format",
    "FormatOption",
    "JsonOption",
    "MessageOption",
    "ModelArgument",
    "PrivateOption",
    "QuietOption",
    "RequestOption",
    "RevisionOption",
    "StreamOption",
    "TokenOption",
    "UsageError",
    "YesOption",
    "check_branch",
    "check_device",
    "check_repo_id",
    "complete",
    "given",
    "model_argument",
    "usage",
    "use_token",
]

# Titles of the panels of `--help`.
MODEL, PRUNING, CALIBRATION, EVALUATION = "Model", "Pruning", "Calibration", "Evaluation"
RESULT, HUB, OUTPUT = "Result", "Hub", "Output"

# What `auto` becomes, and what commands are written for.
Format = Literal["human", "agent", "json", "quiet"]
FORMATS = ("auto", *get_args(Format))


def complete(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the shell completion of an option with a fixed set of values: `autocompletion=complete(METHODS)`."""

    def beginning_with(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return beginning_with


class UsageError(ArgumentError):
    """The command line is wrong, whatever the model and the files are: exit status 2."""


@contextmanager
def usage() -> Iterator[None]:
    """Make each ValueError a usage error: options are read here, and nothing else is.

    Raises:
        UsageError: an option has a value that it cannot have, or does not go with another one.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(*error.args) from error


def check_repo_id(repo_id: str | None) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        UsageError: of --repo-id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if repo_id is not None:
            validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(
            f"repo_id must be a valid repository name, got {repo_id!r}. Choose one such as me/my-model."
        ) from error


def check_branch(branch: str | None, create_pr: bool) -> None:
    """Refuse a branch beside a pull request.

    Raises:
        UsageError: of --push-revision.
    """
    if create_pr and branch is not None:
        raise UsageError(
            f"push_revision must be left out beside --create-pr, got {branch!r}. A pull request is its own branch."
        )


def check_device(device: str | None, dtype: str = "auto") -> None:
    """Refuse a device that is not there, and what is no dtype. Imports torch.

    Raises:
        UsageError: of --device or --dtype.
    """
    from hf_farms.loading.devices import find_device, parse_dtype

    with usage():
        parse_dtype(dtype)
        if device is not None:
            find_device(device)


def given(
    context: typer.Context, *, panels: Collection[str] = (), names: Collection[str] = (), but: Collection[str] = ()
) -> list[str]:
    """Return the options that stand on the command line, as they are written there.

    Args:
        context: of the command.
        panels: titles of panels whose options count.
        names: of parameters that count too.
        but: names of parameters that do not count.
    """
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if (getattr(parameter, "rich_help_panel", None) in panels or parameter.name in names)
        and parameter.name not in but
        and getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]


def model_argument(also: str = "") -> Any:
    """Return the argument MODEL.

    Args:
        also: what it may be beside a hub id, a folder or `demo`, such as ", or a report".
    """
    return typer.Argument(
        metavar="MODEL",
        help=f"Hub id, folder, or `demo`{also}.",
        # Of no match the shell makes names of files.
        autocompletion=complete(["demo"]),
    )


def use_token(token: str | None) -> None:
    """Let everything in this process use a token: downloads by transformers and datasets too."""
    if token:
        os.environ["HF_TOKEN"] = token


ModelArgument = Annotated[str, model_argument()]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        rich_help_panel=OUTPUT,
        metavar=f"[{'|'.join(FORMATS)}]",
        help="How results are printed; `auto` is `agent` for coding agents and `human` for everybody else.",
        autocompletion=complete(FORMATS),
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Short for --format json: one JSON document.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        help="Short for --format quiet: only numbers, paths and ids, one a line.",
        rich_help_panel=OUTPUT,
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.", rich_help_panel=OUTPUT)]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, and stop.", rich_help_panel=OUTPUT)
]
DtypeOption = Annotated[
    str, typer.Option(help="Load the model as this dtype; `auto`: the checkpoint's own.", rich_help_panel=MODEL)
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Where to compute, such as cuda:1; a GPU if there is one, else the CPU.", rich_help_panel=MODEL),
]
StreamOption = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Leave the blocks on disk and load one at a time; the result is the same  [default: where the model would "
        "take more than half of the free memory]",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
AllowPickleOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read pickled weights where there are no safetensors; no code in them is run.",
        rich_help_panel=MODEL,
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of MODEL on the Hub.", rich_help_panel=MODEL)
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        envvar="HF_TOKEN",
        help="Hub token (visible in the process list; prefer `hf auth login`).",
        rich_help_panel=HUB,
    ),
]
PrivateOption = Annotated[
    bool | None,
    typer.Option(
        "--private/--no-private", help="Visibility of a new repository.", show_default=False, rich_help_panel=HUB
    ),
]
ForeignOption = Annotated[
    bool,
    typer.Option(
        "-y",
        "--yes",
        help="Push into a repository with files that hf-farms did not write, too.",
        rich_help_panel=HUB,
    ),
]
RequestOption = Annotated[
    bool,
    typer.Option(
        "--create-pr", help="Open a pull request, or continue the one of an earlier run.", rich_help_panel=HUB
    ),
]
BranchOption = Annotated[
    str | None,
    typer.Option("--push-revision", help="Branch to write to; created if it does not exist.", rich_help_panel=HUB),
]
MessageOption = Annotated[
    str | None, typer.Option(help="Title of the commit and the pull request.", rich_help_panel=HUB)
]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Answer all questions with yes.")]
