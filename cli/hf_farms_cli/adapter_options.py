"""Options of several commands of `hf-farms adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AdapterArgument", "IncludeBaseOption", "OutputOption"]

AdapterArgument = Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder or Hub id of an adapter.")]
OutputOption = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="New folder to write.")]
IncludeBaseOption = Annotated[
    bool,
    typer.Option(
        "--include-base/--no-include-base",
        help="Also write the slices of the base, which `unmerge` and `fuse` need; doubles the size.",
    ),
]
