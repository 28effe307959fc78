"""Regenerate the card of a folder from its report."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from hf_farms_cards import render_card, write_card
from hf_farms_cards.card import check_card, figure_files, is_ours, repo_of
from hf_farms_cards.quick_start import Checkpoint

from hf_farms.errors import HfFarmsError, HfFarmsWarning, OutputError
from hf_farms.files.atomic_writes import writing
from hf_farms.files.path_checks import check_figures, check_file
from hf_farms.files.paths import is_inside
from hf_farms.hub.base_model import fetch_base_model
from hf_farms.hub.license_files import copy_license_files
from hf_farms.loading.names import ModelRef
from hf_farms.output.allowed_paths import check_apart
from hf_farms.privacy.publishing import is_local
from hf_farms.reports import BaseModelRecord, PruneReport
from hf_farms.reports.folders import load_report
from hf_farms.reports.training import TrainReport

__all__ = ["copy_license", "folder_card", "name_in_card", "write_folder_card"]

CARD = "README.md"


def folder_card(folder: Path, *, repo_id: str | None = None, token: str | None = None) -> str:
    """Return the card of a pruned or trained model without writing it.

    Args:
        folder: with the report, or with the files that the callbacks wrote.
        repo_id: repository that the card names; None: that of the card in the folder, else the folder's name.
        token: of the Hub, to fetch the license of a training's base model; None: the token of `hf auth login`.

    Raises:
        DataError: there is no report, or it is damaged.
    """
    report = _with_base(load_report(folder), token)
    name = repo_id or repo_of(folder / CARD) or folder.absolute().name
    return render_card(report, repo_id=name, checkpoint=Checkpoint.of(folder))


def write_folder_card(
    folder: Path,
    *,
    repo_id: str | None = None,
    target: Path | None = None,
    overwrite: bool = False,
    token: str | None = None,
) -> Path:
    """Write the card of a pruned or trained model, with its figures in the same folder.

    Args:
        folder: as for `folder_card`.
        repo_id: as for `folder_card`.
        target: file to write; None: README.md in the folder.
        overwrite: replace a card, and figures beside it, not written by hf-farms.
        token: as for `folder_card`.

    Returns:
        The file.

    Raises:
        OutputError: a file of others, a special file, or a place inside the model.
        DataError: there is no report, or it is damaged.
    """
    stored = load_report(folder)
    report = _with_base(stored, token)
    own = folder / CARD
    path = own if target is None else target
    _check_target(path, overwrite=overwrite)
    check_card(report, path)
    if not is_inside(path, own):
        for place in (path, path.parent / "figures"):
            check_apart(place, {"the model": folder})
        if not overwrite and not is_ours(path):
            call = "write_folder_card(overwrite=True)"
            check_figures(path.parent, figure_files(report), argument="output", overwrite=call)
    with writing(path.parent):
        if report.base is not stored.base and report.base is not None and target is None:
            copy_license(report.base, folder, token)
        return write_card(report, folder, repo_id=repo_id, target=path)


def name_in_card(folder: Path, repo_id: str) -> None:
    """Rewrite a card of ours if its quick start names another repository."""
    card = folder / CARD
    if is_ours(card) and repo_of(card) != repo_id:
        write_card(load_report(folder), folder, repo_id=repo_id)


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.parent.is_dir() or target.is_dir():
        raise OutputError(f"output must be a file in an existing folder, got {str(target)!r}.")
    check_file(target)
    if target.exists() and not overwrite and not is_ours(target):
        raise OutputError(
            f"card must not replace what others wrote, got {str(target)!r}, which is not a card of hf-farms.",
            hint="Write it to another `output`, or replace that file with `write_folder_card(overwrite=True)`.",
        )


def copy_license(base: BaseModelRecord, folder: Path, token: str | None) -> None:
    """Copy the license files of a base model on the Hub as far as possible; a warning says what went wrong."""
    try:
        copy_license_files(base, folder, token=token)
    except HfFarmsError as error:
        warnings.warn(f"The license files of the base model were not copied: {error}", HfFarmsWarning, stacklevel=3)


def _with_base(report: PruneReport | TrainReport, token: str | None) -> PruneReport | TrainReport:
    """Fetch the record of a training's base model from the Hub: the card needs its license."""
    if not isinstance(report, TrainReport) or report.base is not None or not report.model:
        return report
    if "/" not in report.model or is_local(report.model) or ModelRef.parse(report.model).kind != "hub":
        return report
    try:
        return replace(report, base=fetch_base_model(report.model, token=token))
    except HfFarmsError as error:
        warnings.warn(f"The card cannot name the license of the base model: {error}", HfFarmsWarning, stacklevel=3)
        return report
