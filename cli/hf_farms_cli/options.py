"""Options that several commands share, each declared once: `format_: FormatOption = "auto"`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, get_args

import typer

from hf_farms.demo import DEMO_FOLDERS
from hf_farms.errors import ArgumentError
from hf_farms_cli.messages import fields_of, with_option

__all__ = [
    "CALIBRATION",
    "EVALUATION",
    "FORMATS",
    "HUB",
    "MODEL",
    "OUTPUT",
    "PRUNING",
    "RESULT",
    "SELECTION",
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
SELECTION = "Selection"
RESULT, HUB, OUTPUT = "Result", "Hub", "Output"

# The formats that commands implement; `auto` becomes one of them.
Format = Literal["human", "agent", "json", "quiet"]
FORMATS = ("auto", *get_args(Format))


def complete(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the shell completion of an option with a fixed set of values: `autocompletion=complete(METHODS)`."""

    def beginning_with(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return beginning_with


class UsageError(ArgumentError):
    """A wrong command line, independent of model and files: exit status 2."""


@contextmanager
def usage(config: str = "") -> Iterator[None]:
    """Turn each ValueError into a usage error; wrap nothing but the parsing of options.

    Args:
        config: name of the config that is made, where several have a field of the same name.

    Raises:
        UsageError: an option has an invalid value, or excludes another one.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(with_option(str(error), fields_of(config))) from error


def check_repo_id(repo_id: str | None) -> None:
    """Refuse an invalid name of a repository.

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
    """Refuse a branch together with a pull request.

    Raises:
        UsageError: of --push-revision.
    """
    if create_pr and branch is not None:
        raise UsageError(
            f"push_revision must be left out with --create-pr, got {branch!r}. A pull request is its own branch."
        )


def check_device(device: str | None, dtype: str = "auto") -> None:
    """Refuse an unavailable device and an unknown dtype. Imports torch.

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
    """Return the options that were given on the command line, in their long spelling.

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
        also: another kind of model, such as ", or a report".
    """
    return typer.Argument(
        metavar="MODEL",
        help=f"Hub id, folder, `demo` or `demo-healthy`{also}.",
        # Without a match, the shell completes file names.
        autocompletion=complete(tuple(DEMO_FOLDERS)),
    )


def use_token(token: str | None) -> None:
    """Set the token for this process, including downloads by transformers and datasets."""
    if token:
        os.environ["HF_TOKEN"] = token


ModelArgument = Annotated[str, model_argument()]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        rich_help_panel=OUTPUT,
        metavar=f"[{'|'.join(FORMATS)}]",
        help="Output format; `auto` is `agent` for coding agents, else `human`.",
        autocompletion=complete(FORMATS),
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Short for --format json: print one JSON document.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        help="Short for --format quiet: print only numbers, paths and ids, one per line.",
        rich_help_panel=OUTPUT,
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.", rich_help_panel=OUTPUT)]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done, and exit.", rich_help_panel=OUTPUT)
]
DtypeOption = Annotated[
    str, typer.Option(help="Dtype to load the model in; `auto`: that of the checkpoint.", rich_help_panel=MODEL)
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Device to run on, such as cuda:1  [default: a GPU if available, else the CPU]", rich_help_panel=MODEL
    ),
]
StreamOption = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Keep the blocks on disk and load one at a time; a block computes the same  [default: --stream if the "
        "model needs more than half of the free memory]",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
AllowPickleOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read pickled weights if the model has no safetensors; code in them is not run.",
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
        "--private/--no-private", help="Whether a new repository is private.", show_default=False, rich_help_panel=HUB
    ),
]
ForeignOption = Annotated[
    bool,
    typer.Option(
        "-y",
        "--yes",
        help="Also push to a repository that contains files not written by hf-farms.",
        rich_help_panel=HUB,
    ),
]
RequestOption = Annotated[
    bool,
    typer.Option("--create-pr", help="Open a pull request, or update the one of an earlier run.", rich_help_panel=HUB),
]
BranchOption = Annotated[
    str | None,
    typer.Option("--push-revision", help="Branch to write to; created if it does not exist.", rich_help_panel=HUB),
]
MessageOption = Annotated[
    str | None, typer.Option(help="Title of the commit and the pull request.", rich_help_panel=HUB)
]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Replace a file not written by hf-farms.")]
