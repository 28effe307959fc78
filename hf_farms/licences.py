"""License duties: the name, notice and label that a license requires of a published derivative (Llama, Gemma)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hf_farms.reports import BaseModelRecord

__all__ = ["LicenseDuties", "duties_of", "generated_name"]


@dataclass(frozen=True, kw_only=True)
class LicenseDuties:
    """Requirements of a license for publishing a modified model.

    Attributes:
        name_prefix: required beginning of the repository's name; None: any name.
        display: text that the card must show; None: none.
        notice: line that a NOTICE file must contain; None: no such file is required.
        source: URL and section of the license.
    """

    name_prefix: str | None = None
    display: str | None = None
    notice: str | None = None
    source: str


def _llama(release: str, *, name_prefix: str | None, display: str | None, notice: str, section: str) -> LicenseDuties:
    source = f"https://www.llama.com/{release}/license, section {section}"
    return LicenseDuties(name_prefix=name_prefix, display=display, notice=notice, source=source)


def _later_llama(number: str) -> LicenseDuties:
    license = f"Llama {number} Community License"
    return _llama(
        f"llama{number.replace('.', '_')}",
        name_prefix="Llama",
        display="Built with Llama",
        notice=f"Llama {number} is licensed under the {license}, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        section="1.b",
    )


# By license identifier, as in model cards. License files of the base model are always copied, and every card lists the
# changes; other licenses require nothing else (Apache-2.0, section 4).
DUTIES = {
    "llama2": _llama(
        "llama2",
        name_prefix=None,
        display=None,
        notice="Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
        "All Rights Reserved.",
        section="1.b",
    ),
    "llama3": _llama(
        "llama3",
        # "Llama 3" in the license; a repository's name has no spaces.
        name_prefix="Llama-3",
        display="Built with Meta Llama 3",
        notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.",
        section="1.b",
    ),
    **{f"llama{number}": _later_llama(number) for number in ("3.1", "3.2", "3.3", "4")},
    "gemma": LicenseDuties(
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        source="https://ai.google.dev/gemma/terms, section 3.1",
    ),
}
# Neither a letter nor a digit after the number: open_llama_3b is a size.
LLAMA_NAME = re.compile(r"(?<![a-z])llama[-_ ]?([234](?:\.\d)?)(?![a-z0-9.])", re.IGNORECASE)


def duties_of(base: BaseModelRecord | None) -> LicenseDuties | None:
    """Return the duties of a derivative beyond a copy of the license and a statement of changes; None: no others.

    A license without an identifier (`other`, or none) is recognized by its own name, then by the name of the model.
    """
    if base is None:
        return None
    if base.license in DUTIES:
        return DUTIES[base.license]
    if base.license not in (None, "other"):
        return None
    if base.license_name in DUTIES:
        return DUTIES[base.license_name]
    match = LLAMA_NAME.search(base.license_name or "") or LLAMA_NAME.search(base.repo_id.rpartition("/")[2])
    return DUTIES.get(f"llama{match[1]}") if match else None


def generated_name(base: BaseModelRecord | None, folder_name: str) -> str:
    """Return the default repository name: the folder's name, with the prefix that the license requires.

    `Meta-Llama-3-8B-farms-wanda-50` becomes `Llama-3-8B-farms-wanda-50`.
    """
    duties = duties_of(base)
    prefix = duties.name_prefix if duties is not None else None
    if prefix is None:
        return folder_name
    name = re.sub(r"^meta[-_]?(?=llama)", "", folder_name, flags=re.IGNORECASE)
    if _without_separators(name).startswith(_without_separators(prefix)):
        return "Llama" + name[len("Llama") :]
    return f"{prefix}-{name}"


def _without_separators(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
