"""Render a report as a model card, and write the card with its figures into a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.files.atomic_writes import write_text
from hf_farms.files.path_checks import check_within
from hf_farms.output.existing_results import CARD_MARK
from hf_farms.reports import PruneReport
from hf_farms.reports.training import TrainReport
from hf_farms_cards.figures.blocks import BLOCKS, dark_of, draw_blocks
from hf_farms_cards.figures.training import LR, SELECTION, draw_selection, draw_training
from hf_farms_cards.markdown import environment
from hf_farms_cards.prune_card import pruned_card
from hf_farms_cards.quick_start import Checkpoint
from hf_farms_cards.train_card import trained_card

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_card", "figure_files", "is_ours", "render_card", "repo_of", "write_card", "write_figures"]

# Matches the repository name in the quick start of a card.
QUICK_START = re.compile(r'(?:^name = |from_pretrained\(|model=)"([\w.-]+/[\w.-]+)"', re.MULTILINE)


def render_card(
    report: PruneReport | TrainReport, *, repo_id: str | None = None, checkpoint: Checkpoint | None = None
) -> str:
    """Render the model card of a pruned or trained model for the Hub.

    Args:
        report: report of `prune`, of the command line, or of a training.
        repo_id: repository of the model; None for the default name of the output folder.
        checkpoint: metadata from the files of the model, see `Checkpoint.of`.

    Returns:
        Markdown with a YAML header. `write_figures` draws the figures that it links.
    """
    from huggingface_hub import ModelCard

    checkpoint = checkpoint or Checkpoint()
    # Reports measured in this process may contain local paths.
    report = report.published()
    if isinstance(report, TrainReport):
        template = "train.md.j2"
        data, values = trained_card(report, repo_id=repo_id, checkpoint=checkpoint)
    else:
        template = "prune.md.j2"
        data, values = pruned_card(report, repo_id=repo_id, checkpoint=checkpoint)
    body = environment().get_template(template).render(**values, figures=_links(report))
    text = re.sub(r"\n{3,}", "\n\n", body)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n"))


def write_card(
    report: PruneReport | TrainReport, folder: str | Path, *, repo_id: str | None = None, target: Path | None = None
) -> Path:
    """Write README.md and its figures into the folder of a model.

    Args:
        report: report of the model.
        folder: existing folder of the model; its config, tokenizer and recipe are read for the card.
        repo_id: repository of the model; None for that of the existing card, else the name of the folder.
        target: file of the card, with figures in the same folder; None for README.md in `folder`.

    Returns:
        Path of the card.

    Raises:
        OSError: a file could not be written.
        OutputError: as for `check_card`.
    """
    folder = Path(folder)
    card = folder / "README.md" if target is None else target
    check_card(report, card)
    name = repo_id or repo_of(folder / "README.md") or folder.absolute().name.removesuffix(".partial")
    text = render_card(report, repo_id=name, checkpoint=Checkpoint.of(folder))
    write_figures(report, card.parent)
    write_text(card, text)
    return card


def check_card(report: PruneReport | TrainReport, target: Path) -> None:
    """Raise if `write_card` cannot write to a path, before anything is drawn.

    Args:
        report: report of the card.
        target: path of the card; figures are written to the same folder.

    Raises:
        OutputError: a path is a link or a special file, a folder instead of a file, or a file instead of a folder.
    """
    check_within(target.parent, [target.name, *figure_files(report)])


def write_figures(report: PruneReport | TrainReport, folder: Path) -> None:
    """Draw the figures of a card into `folder/figures`, each in a light and a dark version."""
    check_within(folder, figure_files(report))
    for name, draw in _figures(report).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw(folder / name, False)
        draw(folder / dark_of(name), True)


def _figures(report: PruneReport | TrainReport) -> dict[str, Callable[[Path, bool], None]]:
    """Return the drawing functions of a report by the file name of the light figure."""
    if isinstance(report, PruneReport):
        return {BLOCKS: lambda path, dark: draw_blocks(report, path, dark=dark)}
    figures: dict[str, Callable[[Path, bool], None]] = {}
    if (rates := report.farms_lr) is not None and rates.measurements:
        figures[LR] = lambda path, dark: draw_training(rates, path, dark=dark)
    if (selection := report.s2ft) is not None and selection.layers:
        figures[SELECTION] = lambda path, dark: draw_selection(selection, path, dark=dark)
    return figures


def figure_files(report: PruneReport | TrainReport) -> list[str]:
    """Return the names of the figures of a card, relative to its folder."""
    return [file for name in _figures(report) for file in (name, dark_of(name))]


def _links(report: PruneReport | TrainReport) -> dict[str, tuple[str, str]]:
    """Return (light file, dark file) of each figure by the stem of the light file."""
    return {Path(name).stem: (name, dark_of(name)) for name in _figures(report)}


def is_ours(card: Path) -> bool:
    """Return whether hf-farms wrote this card."""
    try:
        return card.is_file() and CARD_MARK in card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def repo_of(card: Path) -> str | None:
    """Return the repository in the quick start of a card written by hf-farms; None without such a card."""
    match = QUICK_START.search(card.read_text(encoding="utf-8")) if is_ours(card) else None
    return match[1] if match else None
