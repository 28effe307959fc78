"""Write the report of a training, with the folder of the run and the task of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_farms.callbacks.trainer import run_folder
from hf_farms.reports import recording

__all__ = ["record_training", "task_of"]


def record_training(args: TrainingArguments, state: TrainerState, model: nn.Module, **record: Any) -> Path | None:
    """Call `hf_farms.reports.recording.record_training` with the folder of the run and the task of the model."""
    if hasattr(model, "get_base_model"):
        # PEFT wraps the model.
        model = cast(Any, model).get_base_model()
    return recording.record_training(args, state, model, folder=run_folder(args, state), task=task_of(model), **record)


def task_of(model: nn.Module) -> str | None:
    """Return the Hub's name for the task of a model, as transformers writes it to the Trainer's own cards.

    Returns:
        For instance "text-generation"; None for a model that transformers does not know.
    """
    # Not at the top: it loads the names of all models.
    from transformers.modelcard import TASK_MAPPING

    for kind in type(model).__mro__:
        # Wrappers (FSDP2) are classes made from the model's own.
        tasks = [task for task, mapping in TASK_MAPPING.items() if kind.__name__ in _class_names(mapping)]
        if tasks:
            # As transformers does, the last of several: "text2text-generation" and not "fill-mask" for BART.
            return tasks[-1]
    return None


def _class_names(mapping: Any) -> set[str]:
    """Return the names of the classes in a mapping, in which a model type may have several."""
    values = (value if isinstance(value, tuple | list) else (value,) for value in mapping.values())
    return {name for names in values for name in names}
