"""The model to evaluate, with its report and its dense model."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hf_farms_cards.card import check_card

from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.files.path_checks import check_within
from hf_farms.output.local_paths import with_local_paths
from hf_farms.output.recipe import RECIPE_NAME, Recipe
from hf_farms.privacy.publishing import is_local
from hf_farms.reports import REPORT_NAME, PruneReport
from hf_farms.reports.folders import report_kind

__all__ = ["EvaluationTarget"]


@dataclass(frozen=True)
class EvaluationTarget:
    """The model to evaluate.

    Attributes:
        name: hub id, folder or `demo`.
        revision: of a hub id.
        report: of the pruning, if any.
        stored: whether results are added to the report and the card in the folder.
    """

    name: str
    revision: str | None
    report: PruneReport | None
    stored: bool

    @classmethod
    def find(cls, name: str, *, revision: str | None, base: bool | None) -> Self:
        """Read the report of a model, if it has one.

        Args:
            name: hub id, folder or `demo`.
            revision: of a hub id.
            base: whether to measure the dense model; the report of a repository on the Hub is fetched only then.

        Raises:
            ModelError: the dense model is to be measured, and is unknown or missing.
            DataError: the report cannot be read.
        """
        path = Path(name) / REPORT_NAME
        if base and not Path(name).is_dir():
            path = _from_hub(name, revision) or path
        report = None
        # Only other kinds of reports contain their kind.
        if path.is_file() and report_kind(path) is None:
            report = with_local_paths(PruneReport.load(path), path.parent)
        # A link points into the cache of the Hub, which must not change.
        in_folder = report is not None and path.parent == Path(name) and not path.is_symlink()
        target = cls(name, revision, report, in_folder and os.access(path.parent, os.W_OK))
        if base:
            target._require_dense()
        if in_folder and not target.stored:
            warnings.warn(f"{name} cannot be written to: the results are not stored.", HfFarmsWarning, stacklevel=2)
        return target

    def _require_dense(self) -> None:
        if self.report is None:
            raise ModelError(
                f"base must be known from {REPORT_NAME}, which {self.name!r} does not have. Evaluate the dense model "
                "by itself."
            )
        if self.dense_is_missing:
            raise ModelError(
                f"the dense model must exist for a comparison, got {self.report.model!r}, which does not.",
                hint="Restore it, or skip the comparison: `base=False`.",
            )

    @property
    def dense_is_missing(self) -> bool:
        """Whether the dense model was a folder that no longer exists, or of which the report has only the last part."""
        if self.report is None:
            return False
        local = self.report.base is None or self.report.base.local
        return local and is_local(self.report.model) and not Path(self.report.model).is_dir()

    @property
    def dense(self) -> tuple[str, str | None] | None:
        """Name and revision of the dense model; None where they are unknown."""
        if self.report is None:
            return None
        if self.report.base is not None and not self.report.base.local:
            return self.report.base.repo_id, self.report.base.revision
        recipe = Path(self.name) / RECIPE_NAME
        return self.report.model, Recipe.load(recipe).revision if recipe.is_file() else None

    def check_writable(self) -> None:
        """Refuse a folder whose report or card must not be written to.

        Raises:
            OutputError: a link or a special file.
        """
        if self.stored and self.report is not None:
            check_within(Path(self.name), [REPORT_NAME])
            check_card(self.report, Path(self.name) / "README.md")


def _from_hub(name: str, revision: str | None) -> Path | None:
    """Download the report of a repository; None: it has none.

    Raises:
        ModelError: no such repository.
        HubError: the Hub cannot be reached, and the report is not in the cache.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    from hf_farms.hub.client import hub_errors, with_retries
    from hf_farms.loading.names import ModelRef

    model = ModelRef.parse(name, revision)
    model.check()
    if model.kind != "hub":
        return None
    # Not transformers' own function, which takes a Hub that cannot be reached for the absence of the file.
    with hub_errors(name, action="ask", revision=revision):
        try:
            return Path(
                with_retries(
                    lambda: hf_hub_download(name, REPORT_NAME, revision=revision),
                    what=f"Downloading {REPORT_NAME}",
                    reads=True,
                )
            )
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError:
            if constants.HF_HUB_OFFLINE:
                return None
            raise
