"""Names that an earlier version had in another place: they still work there, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["moved"]


def moved(module: str, names: Mapping[str, str]) -> Callable[..., Any]:
    """Return a `__getattr__` for a module from which names have moved.

    The new place is imported when the name is used. Assign the function where type checkers do not see it (`if not
    TYPE_CHECKING`), otherwise they accept every name of the module.

    Args:
        module: `__name__` of the module.
        names: old name -> new path, such as `hf_farms.blocks.TokenMask`.
    """

    def get(name: str, stacklevel: int = 2) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        package, _, current = names[name].rpartition(".")
        warnings.warn(
            f"{module}.{name} is {names[name]} now. Import it from there; the old name will be removed.",
            DeprecationWarning,
            stacklevel=stacklevel,
        )
        return getattr(importlib.import_module(package), current)

    return get
