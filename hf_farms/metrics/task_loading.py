"""Find tasks of lm-eval by name, and set the seeds that it uses."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from hf_farms.metrics.quiet import require_hub

__all__ = ["check_task_options", "lm_eval_defaults", "set_seeds", "task_manager"]


def check_task_options(*, include_path: str | Path | None, num_fewshot: int | None, limit: int | None) -> None:
    """Refuse options of tasks that are out of range, whatever the tasks are.

    Raises:
        ValueError: a missing folder, or a number out of range.
    """
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"num_fewshot must be at least 0, got {num_fewshot}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}. Leave it out for all questions.")
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"include_path must be a folder with YAML files of tasks, got {str(include_path)!r}.")


def task_manager(names: list[str], include_path: str | Path | None) -> Any:
    """Return a TaskManager that knows the named tasks.

    The tasks of lm-eval are ten thousand files; they are read only if a name is not in `include_path`.

    Raises:
        ValueError: unknown task.
        DataError: a task needs the Hub, which cannot be reached.
    """
    from lm_eval.tasks import TaskManager

    manager = None
    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
    if manager is None or not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=str(include_path) if include_path is not None else None)
    known = manager.all_tasks
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            suggestion = f"Did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists them."
            raise ValueError(f"tasks must be names that lm-eval knows, got {name!r}. {suggestion}")
    folder = Path(include_path).resolve() if include_path is not None else None
    paths = [manager.task_index[name].yaml_path for name in names]
    if folder is None or not all(path and path.resolve().is_relative_to(folder) for path in paths):
        require_hub()
    return manager


def lm_eval_defaults() -> Any:
    """Return the module `lm_eval.defaults`."""
    from lm_eval import defaults

    return defaults


def set_seeds() -> None:
    """Set the default seeds of lm-eval: some tasks shuffle on loading, and some models sample."""
    import random

    import numpy as np
    import torch

    random.seed(lm_eval_defaults().DEFAULT_RANDOM_SEED)
    np.random.seed(lm_eval_defaults().DEFAULT_OTHER_SEED)
    torch.manual_seed(lm_eval_defaults().DEFAULT_OTHER_SEED)
