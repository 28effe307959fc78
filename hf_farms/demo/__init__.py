"""The demo: two small trained Llamas and public-domain text, to try hf-farms without a download.

`demo` has two blocks that were inserted late in its training; `demo-healthy` is its twin without a defect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

__all__ = ["DEMO_FOLDERS", "Split", "demo_model", "demo_text"]

Split = Literal["calibration", "select", "test"]
# Name of a demo model -> its folder.
DEMO_FOLDERS = {"demo": Path(__file__).parent / "model", "demo-healthy": Path(__file__).parent / "model_healthy"}


def demo_model(name: str = "demo") -> Path:
    """Return the folder of a demo model, a plain transformers checkpoint.

    Args:
        name: "demo" (blocks 3 and 5 were inserted late) or "demo-healthy" (its twin without a defect).

    Raises:
        ValueError: no demo model has this name.
    """
    if name not in tuple(DEMO_FOLDERS):
        raise ValueError(f"name must be one of {', '.join(DEMO_FOLDERS)}, got {name!r}.")
    return DEMO_FOLDERS[name]


def demo_text(split: Split) -> Path:
    """Return the text file of one split: speeches separated by two empty lines.

    Args:
        split: "calibration" (speeches that the demo models were trained on), or the held-out "select" and "test".

    Raises:
        ValueError: the split does not exist.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}.")
    return Path(__file__).parent / "text" / f"{split}.txt"
