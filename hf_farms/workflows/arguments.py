"""Check the types of arguments that all workflows take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_farms.config.checks import check, check_arguments
from hf_farms.errors import argument_errors

__all__ = ["check_names", "check_types"]


def check_types(function: Callable[..., Any], *, progress: object, models: dict[str, object], **values: object) -> None:
    """Refuse arguments of another type before anything is read or asked.

    Args:
        function: the workflow that is called.
        progress: its callback.
        models: its models by name of the argument.
        values: its other arguments by name.

    Raises:
        ArgumentError: with the argument.
    """
    with argument_errors():
        for name, model in models.items():
            # A model in memory may print as hundreds of lines.
            shown = type(model).__name__ if hasattr(model, "modules") else model
            check(isinstance(model, str | Path), name, "a hub id, a folder or 'demo'", shown)
        check_arguments(function, **values)
        constraint = "a function of the stage, the steps done and the steps in all, or None"
        check(progress is None or callable(progress), "progress", constraint, progress)


def check_names(**values: object) -> None:
    """Refuse anything but a sequence of names; one name would be taken apart into its letters.

    Raises:
        ArgumentError: with the argument.
    """
    with argument_errors():
        for argument, names in values.items():
            remedy = f"Write [{names!r}]." if isinstance(names, str) else ""
            check(isinstance(names, list | tuple), argument, "a sequence of names", names, remedy)
            for name in names if isinstance(names, list | tuple) else ():
                check(isinstance(name, str), argument, "a sequence of names", name)
