"""Reports -> model cards: the text, and the folder with the figures that it shows."""

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

__all__ = ["check_card", "is_ours", "render_card", "repo_of", "write_card", "write_figures"]

# The line of the quick start that names the repository.
QUICK_START = re.compile(r'(?:^name = |from_pretrained\(|model=)"([\w.-]+/[\w.-]+)"', re.MULTILINE)


def render_card(
    report: PruneReport | TrainReport, *, repo_id: str | None = None, checkpoint: Checkpoint | None = None
) -> str:
    """Describe a pruned or trained model in the form that the Hub shows.

    Args:
        report: what `prune`, the command line or a training measured.
        repo_id: where the model will be found; None: the name that the command line gives the folder.
        checkpoint: what the model's files say, see `Checkpoint.of`.

    Returns:
        Markdown with a YAML header. `write_figures` draws what it shows.
    """
    from huggingface_hub import ModelCard

    checkpoint = checkpoint or Checkpoint()
    # One that was measured in this process has names as they were given.
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
    """Write README.md and its figures into the folder of a model, whose other files are read for it.

    Args:
        report: of that model.
        folder: an existing folder.
        repo_id: where the model will be found; None: where the card that is there says, else the name of the folder.
        target: write the card here, and its figures beside it; None: README.md in the folder.

    Returns:
        The card.

    Raises:
        OSError: a file could not be written.
        OutputError: as `check_card`.
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
    """Refuse places where `write_card` must not write, before anything is drawn.

    Args:
        report: to be described.
        target: the card; its figures lie beside it.

    Raises:
        OutputError: a link, a special file, or a folder in the place of a file or the other way round.
    """
    check_within(target.parent, [target.name, *_files(report)])


def write_figures(report: PruneReport | TrainReport, folder: Path) -> None:
    """Draw the figures of a card, each for light and for dark pages, into `folder/figures`."""
    check_within(folder, _files(report))
    for name, draw in _figures(report).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw(folder / name, False)
        draw(folder / dark_of(name), True)


def _figures(report: PruneReport | TrainReport) -> dict[str, Callable[[Path, bool], None]]:
    """What is drawn for a report, by the name of the light file."""
    if isinstance(report, PruneReport):
        return {BLOCKS: lambda path, dark: draw_blocks(report, path, dark=dark)}
    found: dict[str, Callable[[Path, bool], None]] = {}
    if (rates := report.farms_lr) is not None and rates.measurements:
        found[LR] = lambda path, dark: draw_training(rates, path, dark=dark)
    if (selection := report.s2ft) is not None and selection.layers:
        found[SELECTION] = lambda path, dark: draw_selection(selection, path, dark=dark)
    return found


def _files(report: PruneReport | TrainReport) -> list[str]:
    return [file for name in _figures(report) for file in (name, dark_of(name))]


def _links(report: PruneReport | TrainReport) -> dict[str, tuple[str, str]]:
    """For each figure its light and its dark file, by the light one's stem."""
    return {Path(name).stem: (name, dark_of(name)) for name in _figures(report)}


def is_ours(card: Path) -> bool:
    """Whether hf-farms wrote this card."""
    try:
        return card.is_file() and CARD_MARK in card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def repo_of(card: Path) -> str | None:
    """The repository that an earlier card of ours names in its quick start; None: none, or no such card."""
    found = QUICK_START.search(card.read_text(encoding="utf-8")) if is_ours(card) else None
    return found[1] if found else None
