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

__all__ = ["load_local_paths", "save_local_paths", "save_report_paths", "with_local_paths"]


def save_local_paths(folder: Path, paths: Mapping[str, str]) -> None:
    """Store the local paths of the files that the recipe in a folder names.

    Args:
        folder: the result folder.
        paths: published name -> absolute path.
    """
    try:
        path = _cache_file(folder)
        if paths or path.exists():
            path.write_text(json.dumps({**load_local_paths(folder), **paths}, indent=2) + "\n", encoding="utf-8")
    except OSError:  # the cache is not writable; users can complete the names by hand
        return


def load_local_paths(folder: Path) -> dict[str, str]:
    """Return the stored paths that still exist: published name -> absolute path."""
    try:
        paths = json.loads(_cache_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(paths, dict):
        return {}
    return {name: path for name, path in paths.items() if isinstance(path, str) and Path(path).exists()}


def with_local_paths(report: PruneReport, folder: Path) -> PruneReport:
    """Return a report with local paths in place of published names, as far as they are known."""
    paths = load_local_paths(folder)
    perplexity = report.perplexity
    if perplexity is not None and (source := paths.get(str(perplexity.config.source))) is not None:
        perplexity = replace(perplexity, config=replace(perplexity.config, source=source))
    return replace(report, model=paths.get(report.model, report.model), perplexity=perplexity)


def save_report_paths(report: PruneReport, folder: Path) -> None:
    """Store the local paths of the files that a report names, before the names are published."""
    names = [report.model, *([report.perplexity.config.source] if report.perplexity else [])]
    paths = {published_path(name): local_path(name) for name in names if name and is_local(name)}
    save_local_paths(folder, {name: path for name, path in paths.items() if Path(path).exists()})


def _cache_file(folder: Path) -> Path:
    from huggingface_hub import cached_assets_path

    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return cached_assets_path("hf_farms", namespace="places", subfolder=key) / "places.json"
