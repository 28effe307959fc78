"""The demo: a small trained Llama and public-domain text, to try hf-farms without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

__all__ = ["demo_model", "demo_text"]

Split = Literal["calibration", "select", "test"]


def demo_model() -> Path:
    """Return the folder of the demo model, a plain transformers checkpoint."""
    return Path(__file__).parent / "model"


def demo_text(split: Split) -> Path:
    """Return the text file of one split: speeches separated by two empty lines.

    Args:
        split: "calibration" (speeches that the demo model was trained on), or the held-out "select" and "test".

    Raises:
        ValueError: the split does not exist.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}.")
    return Path(__file__).parent / "text" / f"{split}.txt"
