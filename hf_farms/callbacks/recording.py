"""What a Trainer alone knows of a training, for its report: the folder of the run, and the task of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_farms.callbacks.trainer import run_folder
from hf_farms.reports import folders

__all__ = ["record_training", "task_of"]


def record_training(args: TrainingArguments, state: TrainerState, model: nn.Module, **record: Any) -> Path | None:
    """`hf_farms.reports.folders.record_training` in the folder of the run, with the task of the model."""
    if hasattr(model, "get_base_model"):
        # Inside the adapters of PEFT.
        model = cast(Any, model).get_base_model()
    return folders.record_training(args, state, model, folder=run_folder(args, state), task=task_of(model), **record)


def task_of(model: nn.Module) -> str | None:
    """What a model is for, by the Hub's name, as transformers has it for the Trainer's own cards; None: not known."""
    # Not at the top: it loads the names of all models.
    from transformers.modelcard import TASK_MAPPING

    for kind in type(model).__mro__:
        # Wrappers (FSDP2) are classes made from the model's own.
        found = [task for task, mapping in TASK_MAPPING.items() if kind.__name__ in _names(mapping)]
        if found:
            # As there: of several the last, so that BART writes and does not fill masks.
            return found[-1]
    return None


def _names(mapping: Any) -> set[str]:
    """The classes of a mapping, where a model type may have several."""
    values = (value if isinstance(value, tuple | list) else (value,) for value in mapping.values())
    return {name for names in values for name in names}
