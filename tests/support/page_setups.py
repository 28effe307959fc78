"""Names that the code of a page takes for given: a model, arguments, data. They are made anew for every block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models import tiny
from trainers import Tokens, arguments, trainer
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


def _learning_rates(folder: Path) -> dict[str, Any]:
    model = tiny("llama")

    def make_trainer(callbacks, optimizer_cls_and_kwargs=None):
        made = trainer(folder / "trainer", callbacks[0], model=model, max_steps=2)
        made.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        return made

    return {"model": model, "make_trainer": make_trainer}


SETUPS = {
    "README.md": _training,
    "docs/learning-rates.md": _learning_rates,
    "docs/pruning.md": _training,
    "docs/s2ft.md": _training,
}
