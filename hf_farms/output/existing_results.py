"""Recognize results of `hf-farms prune`: only a folder that contains nothing else may be overwritten."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_farms.errors import OutputError
from hf_farms.files import names
from hf_farms.files.atomic_writes import UNFINISHED_FILE
from hf_farms.files.documents import DocumentError, load_json, read_text
from hf_farms.files.paths import kind_of
from hf_farms.reports import REPORT_NAME

__all__ = ["CARD_MARK", "RECIPE_NAME", "STATE", "check_target", "check_unfinished", "is_result", "remove_leftovers"]

RECIPE_NAME = names.RECIPE
# The folder of unfinished work.
STATE = ".hf-farms-unfinished"
# A tag in the metadata of every card.
CARD_MARK = "\n- hf-farms\n"
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
LICENSE = re.compile(r"(LICEN[CS]E|USE_POLICY|NOTICE)([-_.].*)?", re.IGNORECASE)
HF_FARMS = frozenset({REPORT_NAME, RECIPE_NAME, "README.md"})
FIGURES = frozenset({"figures/blocks.png", "figures/blocks-dark.png"})
# Files that save_pretrained of models and tokenizers writes.
MODEL = frozenset({names.MODEL_CONFIG, "generation_config.json", names.WEIGHTS_INDEX})
TOKENIZER = frozenset(
    {
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        *("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
        *("sentencepiece.model", "spm.model", "spm_char.model", "source.spm", "target.spm", "target_vocab.json"),
        *("vocab-src.json", "vocab-tgt.json", "bpe.codes", "dict.txt", "byte_maps.json", "emoji.json"),
        *("entity_vocab.json", "normalizer.json", "prophetnet.tokenizer", "word_shape.json", "tekken.json"),
        *("word_pronunciation.json", "chat_template.jinja", "chat_template.json"),
    }
)
# Files of file managers.
SYSTEM = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def remove_leftovers(folder: Path) -> None:
    """Remove the state of unfinished work that a kill may have left in a finished folder."""
    shutil.rmtree(folder / STATE, ignore_errors=True)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier result.

    Args:
        folder: must be absent, empty, or a result.
        overwrite: whether a result may be replaced.

    Raises:
        OutputError: the folder is a result and `overwrite` is false, or contains other files.
    """
    if kind_of(folder) is None or (kind_of(folder) == "folder" and not any(folder.iterdir())):
        return
    foreign = _foreign_entries(folder)
    if not is_result(folder):
        raise OutputError(
            f"output must be a new folder{' or an earlier result' if overwrite else ''}, got {str(folder)!r}, which is "
            "a folder that hf-farms did not write.",
            hint="Choose another `output`.",
        )
    if foreign:
        raise OutputError(
            f"output must be a new folder, got {str(folder)!r}, which is an earlier result with files that hf-farms "
            f"did not write ({_first(foreign)}).",
            hint="Choose another `output`, or move them away and add `overwrite=True`.",
        )
    if not overwrite:
        raise OutputError(
            f"output must be a new folder, got {str(folder)!r}, which is an earlier result.",
            hint="Choose another `output`, or replace it with `overwrite=True`.",
        )


def check_unfinished(folder: Path, *, replaces: bool = False) -> None:
    """Refuse a folder of unfinished work that hf-farms did not write.

    Args:
        folder: of the unfinished work.
        replaces: whether the folder is deleted, so that it must contain no other files; else they stay.

    Raises:
        OutputError: the folder exists and hf-farms did not write it, or contains other files.
    """
    if kind_of(folder) is None or (kind_of(folder) == "folder" and not any(folder.iterdir())):
        return
    foreign = _foreign_entries(folder)
    if kind_of(folder / STATE) != "folder" or (replaces and foreign):
        names = f" ({_first(foreign)})" if foreign else ""
        raise OutputError(
            f"{str(folder)!r} is needed for unfinished work, but has content that hf-farms did not write{names}.",
            hint="Move it away, or choose another `output`.",
        )


def is_result(folder: Path) -> bool:
    """Return whether a folder contains a pruning report and a recipe, as every finished `prune` does.

    Reports of training and analysis name their kind or have other fields.
    """
    if kind_of(folder) != "folder" or any(kind_of(folder / name) != "file" for name in (REPORT_NAME, RECIPE_NAME)):
        return False
    report = _json(folder / REPORT_NAME)
    # A damaged report next to a recipe is still one of a result.
    return report is None or ("kind" not in report and "sparsity" in report)


def _foreign_entries(folder: Path) -> list[str]:
    """Return the entries of a folder that `prune` did not write, judged by their names."""
    is_weights = _weights_of(folder)
    return sorted(
        path.relative_to(folder).as_posix() for path in _entries(folder) if not _is_known(path, folder, is_weights)
    )


def _weights_of(folder: Path) -> Callable[[str], bool]:
    """Return whether a name is that of weights that belong to the result.

    A result has one file without an index, or the shards in its index; before shards were merged, one for each block
    and one more. Without a report any shard may be of unfinished work.
    """
    report, index = _json(folder / REPORT_NAME), _json(folder / names.WEIGHTS_INDEX)
    blocks, mapping = (report or {}).get("blocks"), (index or {}).get("weight_map")
    listed = set(mapping.values()) if isinstance(mapping, dict) else set()
    count = len(blocks) + 1 if isinstance(blocks, list) else None
    alone = index is None and not any(SHARD.fullmatch(path.name) for path in folder.iterdir())

    def is_weights(name: str) -> bool:
        if name == names.WEIGHTS:
            return alone
        if (match := SHARD.fullmatch(name)) is None:
            return False
        return count is None or name in listed or int(match[1]) == count

    return is_weights


def _entries(folder: Path) -> Iterator[Path]:
    """Yield the entries of a folder, and the files inside subfolders that `prune` writes."""
    for path in folder.iterdir():
        descend = path.name in ("figures", "additional_chat_templates")
        if kind_of(path) != "folder" or not descend:
            yield path
        else:
            yield from path.iterdir()


def _is_known(path: Path, folder: Path, is_weights: Callable[[str], bool]) -> bool:
    if kind_of(path) == "folder":
        return path.name == STATE and path.parent == folder
    name = path.relative_to(folder).as_posix()
    if kind_of(path) != "file":
        return False
    if name == "README.md":
        return _is_own_card(path)
    if is_weights(name):
        return True
    known: Iterable[frozenset[str]] = (HF_FARMS, FIGURES, MODEL, TOKENIZER, SYSTEM)
    return (
        any(name in names for names in known)
        or LICENSE.fullmatch(name) is not None
        or path.match(UNFINISHED_FILE)
        or (path.parent.name == "additional_chat_templates" and path.suffix == ".jinja")
    )


def _is_own_card(card: Path) -> bool:
    try:
        return CARD_MARK in card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _json(path: Path) -> dict[str, Any] | None:
    """Return a file as a dict; None: it is missing or damaged."""
    try:
        content = load_json(read_text(path)).data if kind_of(path) == "file" else None
    except (OSError, DocumentError):
        return None
    return content if isinstance(content, dict) else None


def _first(names: Sequence[str], limit: int = 3) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
