"""A finished result folder at the end of a command: its size, and what to do with it next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_farms.reports import PruneReport

__all__ = ["next_steps", "readable_size", "size_on_disk"]


def size_on_disk(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable_size(size: float) -> str:
    """Format a number of bytes with a suitable unit."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def next_steps(report: PruneReport, folder: Path, *, pushed: bool) -> list[str]:
    """Return a line for each thing to do next: load the model, evaluate it, and push it if it was not pushed yet."""
    from hf_farms_cards.quick_start import Checkpoint
    from hf_farms_cards.tasks import task_of

    task = task_of(report.model_type, Checkpoint.of(folder).architecture)
    quoted = shlex.quote(str(folder))
    lines = [
        f"Load it: transformers.{task.auto_class}.from_pretrained({str(folder)!r})",
        f"Evaluate it on a task (needs hf-farms[eval]): hf-farms eval {quoted} --tasks hellaswag"
        if task.pipeline_tag == "text-generation"
        else f"Evaluate it: hf-farms eval {quoted}",
    ]
    return [*lines, *([] if pushed else [f"Publish it: hf-farms push {quoted}"])]
