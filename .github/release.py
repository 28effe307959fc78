"""Compare the version of a release in all its places and print its notes: `make release-check TAG=v0.2.0`.

python .github/release.py TAG
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)


def sections(changelog: str) -> list[tuple[str, str | None, str]]:
    """Return name, date and text of each section of a changelog, the newest first."""
    headings = list(HEADING.finditer(changelog))
    ends = [heading.start() for heading in headings[1:]] + [len(changelog)]
    return [
        (heading["name"], heading["date"], changelog[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=True)
    ]


def release_notes(tag: str, root: Path = ROOT) -> str:
    """Return the text of the changelog for a tag.

    Raises:
        ValueError: pyproject.toml, CITATION.cff, CHANGELOG.md and the tag have different versions; no date or notes.
    """
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if tag != f"v{version}":
        raise ValueError(f"tag must be v{version}, the version of pyproject.toml, got {tag!r}. Change one of them.")
    cited = re.findall(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited != [version]:
        raise ValueError(f"CITATION.cff must have version {version}, got {cited}. Change it there.")
    (top, _, unreleased), *released = sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if top != "Unreleased" or unreleased:
        raise ValueError(f"CHANGELOG.md must begin with an empty Unreleased section. Move its text to {version}.")
    name, date, notes = released[0] if released else ("", None, "")
    if name != version or date is None or not notes:
        raise ValueError(
            f"the newest release of CHANGELOG.md must be '## [{version}] - YYYY-MM-DD' with notes, "
            f"got {name!r} of {date}. Write it."
        )
    return notes


if __name__ == "__main__":
    try:
        print(release_notes(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"error: {error}")
