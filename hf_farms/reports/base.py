"""Base class of reports: a versioned JSON form, and the versions of the packages that wrote it."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from hf_farms.config.checks import check
from hf_farms.errors import DataError
from hf_farms.files import names
from hf_farms.files.atomic_writes import write_text, writing
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import DocumentError, load_json, read_text, short_repr
from hf_farms.privacy.masking import mask_secrets
from hf_farms.privacy.publishing import published

if TYPE_CHECKING:
    from cattrs.preconf.json import JsonConverter

__all__ = [
    "READABLE_VERSIONS",
    "REPORT_NAME",
    "SCHEMA_VERSION",
    "Report",
    "json_converter",
    "save_report",
    "versions",
]

# Of all files that hold configs or reports. 2: the option `farms` of configs is named `spectra`.
SCHEMA_VERSION = 2
READABLE_VERSIONS = range(1, SCHEMA_VERSION + 1)
REPORT_NAME = names.REPORT


@dataclass(frozen=True, kw_only=True)
class Report:
    """JSON form shared by all reports."""

    # Whether it is in the folder of a model that may be pushed, so that names in it are published.
    shared: ClassVar[bool] = False

    schema_version: int = SCHEMA_VERSION
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def __post_init__(self) -> None:
        check(
            self.schema_version in READABLE_VERSIONS,
            "schema_version",
            f"a whole number from 1 to {SCHEMA_VERSION}",
            self.schema_version,
        )
        # An object has the fields of today, whichever version it was read from.
        object.__setattr__(self, "schema_version", SCHEMA_VERSION)

    def to_json(self) -> str:
        """Return the report as indented JSON, without NaN and secrets; shared reports have no private paths."""
        fields = json_converter().unstructure(self)
        text = json.dumps(published(fields) if self.shared else fields, indent=2, allow_nan=False)
        return mask_secrets(text) + "\n"

    def published(self) -> Self:
        """Return the report without private paths and secrets."""
        return json_converter().structure(published(json_converter().unstructure(self)), type(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DataError: not JSON, another schema version, or another kind of report.
        """
        return cls._parse(text, repr(text[:40]))

    @classmethod
    def _parse(cls, text: str, where: str) -> Self:
        try:
            document = load_json(text)
        except DocumentError as error:
            raise DataError(f"report must be a JSON object, got {where} ({error}).") from error
        if not isinstance(document.data, dict):
            raise DataError(f"report must be a JSON object, got {where}.")
        number = document.data.get("schema_version")
        if number not in READABLE_VERSIONS:
            newer = isinstance(number, int) and number > SCHEMA_VERSION
            repair = "Upgrade hf-farms: pip install -U hf-farms." if newer else "Write the report again."
            raise DataError(
                f"schema_version must be at most {SCHEMA_VERSION}, got {short_repr(number)}. {repair}",
                hint=f"The report is {where}.",
            )
        try:
            return parse_dataclass(document, cls)
        except DocumentError as error:
            raise DataError(
                f"report must be a {cls.__name__}, got JSON of another form in {where} ({error})."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to a file atomically.

        Raises:
            OutputError: the path exists and is not a regular file.
        """
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            DataError: as `from_json`, or the file does not exist.
        """
        try:
            text = read_text(Path(path))
        except DocumentError as error:
            raise DataError(f"report must be a JSON object, got {str(path)!r} ({error}).") from error
        except OSError as error:
            raise DataError(f"report must be a readable file, got {str(path)!r} ({error.strerror}).") from error
        return cls._parse(text, repr(str(path)))


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and its main dependencies, without importing them.

    Releases without the build behind "+": of one and the same torch, wheels of PyPI leave it out of their metadata
    (`2.13.0`), those of pytorch.org have it (`2.13.0+cpu`), and `torch.__version__` says it in either.
    """
    versions = {"python": platform.python_version()}
    for name in ("hf-farms", "torch", "transformers", "huggingface_hub"):
        try:
            versions[name] = version(name).partition("+")[0]
        except PackageNotFoundError:  # run from a source tree, or a part that is not installed
            continue
    return versions


@cache
def json_converter() -> JsonConverter:
    """Between dataclasses and what JSON can hold; unknown keys are errors."""
    from cattrs.preconf.json import make_converter

    return make_converter(forbid_extra_keys=True)


def save_report(report: Report, path: Path) -> None:
    """Write a report to a file, and make the folders that it is in.

    Raises:
        OutputError: the file cannot be written, or the path is not a regular file.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        report.save(path)
