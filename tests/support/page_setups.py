"""Names that the code of a page takes for given: a model, arguments, data. They are made anew for every block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models import tiny
from trainers import Tokens, arguments
from transformers import Trainer


def _training(folder: Path) -> dict[str, Any]:
    """A tiny model and its twin, arguments and data."""
    return {
        "Trainer": Trainer,
        "model": tiny("llama"),
        "args": arguments(folder / "trainer", max_steps=2),
        "data": Tokens(),
        "texts": Tokens(),
        "base_model": tiny("llama"),
        "inputs": {"input_ids": torch.arange(8)[None]},
    }


SETUPS = {
    "README.md": _training,
    "docs/pruning.md": _training,
}
