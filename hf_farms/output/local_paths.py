"""Remember the local paths behind the published names in a recipe or report.

They are stored in the assets of the Hub's cache, never in the result folder, which will be shared.
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
    """Store the local paths of the files that the recipe in a folder names.

    Args:
        folder: the result folder.
        places: published name -> absolute path.
    """
    try:
        path = _cache_file(folder)
        if places or path.exists():
            path.write_text(json.dumps({**known_places(folder), **places}, indent=2) + "\n", encoding="utf-8")
    except OSError:  # the cache is not writable; users can complete the names by hand
        return


def known_places(folder: Path) -> dict[str, str]:
    """Return the stored paths that still exist: published name -> absolute path."""
    try:
        places = json.loads(_cache_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(places, dict):
        return {}
    return {name: path for name, path in places.items() if isinstance(path, str) and Path(path).exists()}


def located_report(report: PruneReport, folder: Path) -> PruneReport:
    """Return a report with local paths in place of published names, as far as they are known."""
    places = known_places(folder)
    perplexity = report.perplexity
    if perplexity is not None and (source := places.get(str(perplexity.config.source))) is not None:
        perplexity = replace(perplexity, config=replace(perplexity.config, source=source))
    return replace(report, model=places.get(report.model, report.model), perplexity=perplexity)


def remember_report(report: PruneReport, folder: Path) -> None:
    """Store the local paths of the files that a report names, before the names are published."""
    names = [report.model, *([report.perplexity.config.source] if report.perplexity else [])]
    places = {published_path(name): local_path(name) for name in names if name and is_local(name)}
    remember_places(folder, {name: path for name, path in places.items() if Path(path).exists()})


def _cache_file(folder: Path) -> Path:
    from huggingface_hub import cached_assets_path

    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return cached_assets_path("hf_farms", namespace="places", subfolder=key) / "places.json"
