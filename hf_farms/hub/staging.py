"""The files of a push as they are sent: a folder of links to them, and texts without private paths and secrets."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_farms.hub.contents import Contents
from hf_farms.privacy.publishing import published, published_text

__all__ = ["staged"]

# What tools write down of a run: names of models, folders and arguments. Vocabularies and templates are what they are.
JSON_OF_RUNS = re.compile(
    r"(\w+_)?config\.json|[\w-]+/config\.json|\w+_results\.json|trainer_state\.json|hf_farms_report\.json|modelcard\.json"
)
TEXT_OF_RUNS = re.compile(r"README\.md|recipe\.yaml|farms_lr\.jsonl|CITATION\.cff|\.eval_results/.*")
# Bytes; larger ones are no such texts.
LONGEST = 50_000_000


@contextmanager
def staged(contents: Contents) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """While open, a folder with what is to be sent, under its names.

    Yields:
        The folder, and the names of texts that differ from those on disk: paths and secrets were taken out.
    """
    with TemporaryDirectory(prefix="hf-farms-push-") as place:
        changed = []
        for name, path in contents.files.items():
            target = Path(place) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            text = _cleaned(name, path)
            if text is None:
                _refer(path.resolve(), target)
            else:
                target.write_text(text, encoding="utf-8", newline="")
                changed.append(name)
        yield Path(place), tuple(changed)


def _cleaned(name: str, path: Path) -> str | None:
    """The text of a file as it may be published; None: as it is."""
    is_json = JSON_OF_RUNS.fullmatch(name)
    if not (is_json or TEXT_OF_RUNS.fullmatch(name)) or path.stat().st_size > LONGEST:
        return None
    try:
        # Line ends stay as they are.
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    if is_json:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        clean = published(found)
        return None if clean == found else json.dumps(clean, indent=2, ensure_ascii=False) + "\n"
    clean = "".join(map(published_text, text.splitlines(keepends=True)))
    return None if clean == text else clean


def _refer(path: Path, target: Path) -> None:
    """A name for a file without another copy of it, where the system allows."""
    for make in (os.symlink, os.link):
        try:
            make(path, target)
            return
        except (OSError, NotImplementedError):  # Windows without the right to make links; another disk
            continue
    shutil.copyfile(path, target)
