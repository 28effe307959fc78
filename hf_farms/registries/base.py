"""Base classes of entries and registries. Imports of entries are lazy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

__all__ = ["Entry", "Needs", "Registry", "load"]

Needs = Literal["nothing", "windows", "matrix", "activations", "gradients", "losses"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One choice of an option.

    Attributes:
        needs: measurements that the function gets: "nothing"; spectra of "windows" or of the whole "matrix";
            "activations" or "gradients" on calibration data; "losses" of pruned models on selection data.
        function: import path, such as "hf_farms.pruning.wanda:wanda". Entry classes
            describe its arguments.
        sentence: Markdown for the card; `{seed}` is replaced by the field `seed` of the config.
        options: fields of the config that this choice reads and another one of the registry does not.
    """

    needs: Needs
    function: str
    sentence: str
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.needs not in get_args(Needs):
            raise ValueError(f"needs must be one of {', '.join(get_args(Needs))}, got {self.needs!r}.")
        check_path("function", self.function)

    def load(self) -> Any:
        """Import the function."""
        return load(self.function)

    def describe(self, config: object) -> str:
        """Return the sentence with the values of a config in it."""
        return self.sentence.format_map(vars(config))


E = TypeVar("E", bound=Entry)


class Registry(dict[str, E]):
    """Entries by name, in display order. An unknown name raises a ValueError that lists the known ones.

    Args:
        option: name of the option whose values these are, for the error.
        entries: by name.
    """

    def __init__(self, option: str, entries: Mapping[str, E]) -> None:
        super().__init__(entries)
        self.option = option

    def __getitem__(self, name: str) -> E:
        # What is no text may have no hash.
        return super().__getitem__(name) if isinstance(name, str) else self.__missing__(name)

    def __missing__(self, name: str) -> E:
        raise ValueError(f"{self.option} must be one of {', '.join(self)}, got {name!r}.")


def load(path: str) -> Any:
    """Import the object of a path such as "package.module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def check_path(field: str, path: str) -> None:
    """Refuse an invalid import path.

    Raises:
        ValueError: not of the form "package.module:name".
    """
    module, separator, name = path.partition(":")
    if not (module and separator and name.isidentifier()):
        raise ValueError(f"{field} must be an import path such as 'package.module:name', got {path!r}.")
