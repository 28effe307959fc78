"""Collect the license section of a card from the license of the dense model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hf_farms.licences import duties_of
from hf_farms.reports import BaseModelRecord

__all__ = ["License", "license_of"]

# Names and URLs of licenses common among models, by their identifier on the Hub.
KNOWN = {
    "apache-2.0": ("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "mit": ("MIT License", "https://opensource.org/license/mit"),
    "bsd-3-clause": ("BSD 3-Clause License", "https://opensource.org/license/bsd-3-clause"),
    "cc-by-4.0": ("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
    "cc-by-nc-4.0": ("CC BY-NC 4.0", "https://creativecommons.org/licenses/by-nc/4.0/"),
    "cc-by-sa-4.0": ("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
    "llama2": ("Llama 2 Community License", "https://ai.meta.com/llama/license/"),
    "llama3": ("Meta Llama 3 Community License", "https://www.llama.com/llama3/license/"),
    "llama3.1": ("Llama 3.1 Community License", "https://www.llama.com/llama3_1/license/"),
    "llama3.2": ("Llama 3.2 Community License", "https://www.llama.com/llama3_2/license/"),
    "llama3.3": ("Llama 3.3 Community License", "https://www.llama.com/llama3_3/license/"),
    "llama4": ("Llama 4 Community License", "https://www.llama.com/llama4/license/"),
    "gemma": ("Gemma Terms of Use", "https://ai.google.dev/gemma/terms"),
}


@dataclass(frozen=True, kw_only=True)
class License:
    """The license section of a card.

    Attributes:
        name: name of the license; None if the card of the dense model names none.
        url: URL of its text; None if unknown.
        display: text that must be displayed, such as "Built with Llama", or None.
        notice: line that a NOTICE file must contain, or None.
        files: license files in the folder of the card.
        known: whether the card of the dense model could be read.
    """

    name: str | None
    url: str | None
    display: str | None
    notice: str | None
    files: tuple[str, ...]
    known: bool


def license_of(base: BaseModelRecord, existing: Collection[str] | None = None) -> License:
    """Return the license of a dense model, and its requirements for derived models.

    Args:
        base: the dense model.
        existing: names of the files in the folder of the card; None to assume that all license files exist.
    """
    name, url = KNOWN.get(base.license or "", (base.license, None))
    if base.license in (None, "other"):
        name = base.license_name
    duties = duties_of(base)
    files = tuple(file for file in base.files if "/" not in file)
    notice = duties.notice if duties else None
    if notice and not any(file.upper().startswith("NOTICE") for file in files):
        files = (*files, "NOTICE")
    return License(
        name=name,
        url=base.license_link or url,
        display=duties.display if duties else None,
        notice=notice,
        files=tuple(file for file in files if existing is None or file in existing),
        known=base.card_read,
    )
