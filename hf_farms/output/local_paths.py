"""Where the files of a result were on this machine: its recipe and report name them as they may be published.

This is kept in the assets of the Hub's cache and never in the folder, which will be shared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.privacy.publishing import is_local, local_path, published_path

if TYPE_CHECKING:
    from hf_farms.reports import PruneReport

__all__ = ["known_places", "located_report", "remember_places", "remember_report"]


def remember_places(folder: Path, places: Mapping[str, str]) -> None:
    """Keep where the files are that the recipe in a folder names.

    Args:
        folder: of the result.
        places: published name -> absolute path.
    """
    try:
        path = _file(folder)
        if places or path.exists():
            path.write_text(json.dumps({**known_places(folder), **places}, indent=2) + "\n", encoding="utf-8")
    except OSError:  # a cache that cannot be written; the names can still be completed by hand
        return


def known_places(folder: Path) -> dict[str, str]:
    """Published name -> absolute path, of what is still there."""
    try:
        found = json.loads(_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: path for name, path in found.items() if isinstance(path, str) and Path(path).exists()}


def located_report(report: PruneReport, folder: Path) -> PruneReport:
    """The report in a folder with the paths that the names in it stand for, as far as they are known."""
    places = known_places(folder)
    perplexity = report.perplexity
    if perplexity is not None and (source := places.get(str(perplexity.config.source))) is not None:
        perplexity = replace(perplexity, config=replace(perplexity.config, source=source))
    return replace(report, model=places.get(report.model, report.model), perplexity=perplexity)


def remember_report(report: PruneReport, folder: Path) -> None:
    """Keep where the files are that a report names, as they will be published now."""
    names = [report.model, *([report.perplexity.config.source] if report.perplexity else [])]
    places = {published_path(name): local_path(name) for name in names if name and is_local(name)}
    remember_places(folder, {name: path for name, path in places.items() if Path(path).exists()})


def _file(folder: Path) -> Path:
    from huggingface_hub import cached_assets_path

    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return cached_assets_path("hf_farms", namespace="places", subfolder=key) / "places.json"
