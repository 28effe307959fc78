"""Stage the files of a push: a temporary folder of links, and copies of texts without private paths and secrets."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_farms.files.documents import dump_json
from hf_farms.hub.contents import Contents
from hf_farms.privacy.publishing import published, published_text

__all__ = ["staged_files"]

# Files in which tools record a run: names of models, folders and arguments. Vocabularies and templates are not changed.
RUN_JSON = re.compile(
    r"(\w+_)?config\.json|[\w-]+/config\.json|\w+_results\.json|trainer_state\.json|hf_farms_report\.json|modelcard\.json"
)
RUN_TEXT = re.compile(r"README\.md|recipe\.yaml|farms_lr\.jsonl|CITATION\.cff|\.eval_results/.*")
# Bytes; larger files are no records of a run.
MAX_BYTES = 50_000_000


@contextmanager
def staged_files(contents: Contents) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield a temporary folder with the files to push, under their names in the repository.

    Yields:
        The folder, and the names of the texts from which paths or secrets were removed.
    """
    with TemporaryDirectory(prefix="hf-farms-push-") as staging:
        changed = []
        for name, path in contents.files.items():
            target = Path(staging) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            text = _publishable_text(name, path)
            if text is None:
                _link(path.resolve(), target)
            else:
                target.write_text(text, encoding="utf-8", newline="")
                changed.append(name)
        yield Path(staging), tuple(changed)


def _publishable_text(name: str, path: Path) -> str | None:
    """Return the text of a file without private paths and secrets; None: the file is pushed unchanged."""
    is_json = RUN_JSON.fullmatch(name)
    if not (is_json or RUN_TEXT.fullmatch(name)) or path.stat().st_size > MAX_BYTES:
        return None
    try:
        # Bytes, to keep line ends.
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    if is_json:
        try:
            content = json.loads(text)
            clean = published(content)
            return None if clean == content else dump_json(clean)
        except (ValueError, RecursionError):  # damaged or nested too deeply: cleaned as the text that it is
            pass
    clean = "".join(map(published_text, text.splitlines(keepends=True)))
    return None if clean == text else clean


def _link(path: Path, target: Path) -> None:
    """Link a file into the staging folder; copy it if the system allows no link."""
    for link in (os.symlink, os.link):
        try:
            link(path, target)
            return
        except (OSError, NotImplementedError):  # Windows without the right to make links; another disk
            continue
    shutil.copyfile(path, target)
