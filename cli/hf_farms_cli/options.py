"""Options that several commands share, each declared once: `format_: FormatOption = "auto"`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal, get_args

import typer

from hf_farms.errors import ArgumentError

__all__ = [
    "FORMATS",
    "AllowPickleOption",
    "DebugOption",
    "DeviceOption",
    "DryRunOption",
    "Format",
    "FormatOption",
    "JsonOption",
    "ModelArgument",
    "PrivateOption",
    "QuietOption",
    "RevisionOption",
    "TokenOption",
    "UsageError",
    "YesOption",
    "check_device",
    "check_repo_id",
    "complete",
    "given",
    "usage",
]

# What `auto` becomes, and what commands are written for.
Format = Literal["human", "agent", "json", "quiet"]
FORMATS = ("auto", *get_args(Format))


def complete(values: Sequence[str]) -> Callable[[str], list[str]]:
    """What the shell offers for an option that takes one of these values: `autocompletion=complete(METHODS)`."""

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


def given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Options that stand on the command line, as they are written there.

    Args:
        context: of the command.
        names: of its parameters.
    """
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in names
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]


# Of no match the shell makes names of files.
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, folder or `demo`.", autocompletion=complete(["demo"]))
]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        metavar=f"[{'|'.join(FORMATS)}]",
        help="How results are printed; `auto` is `agent` for coding agents and `human` for everybody else.",
        autocompletion=complete(FORMATS),
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Short for --format json: one JSON document.")]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Short for --format quiet: only numbers, paths and ids, one a line.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="Where to compute, such as cuda:1; a GPU if there is one, else the CPU.")
]
AllowPickleOption = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pickled weights where there are no safetensors; no code in them is run."),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the Hub.")]
TokenOption = Annotated[
    str | None,
    typer.Option(envvar="HF_TOKEN", help="Hub token (visible in the process list; prefer `hf auth login`)."),
]
PrivateOption = Annotated[
    bool | None, typer.Option("--private/--no-private", help="Visibility of a new repository.", show_default=False)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Answer all questions with yes.")]
