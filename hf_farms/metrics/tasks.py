"""Tasks of lm-eval: their questions are loaded once, and asked to any number of models.

lm-eval is an extra and slow to import, so it is imported when tasks are loaded.
"""

from __future__ import annotations

import difflib
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.errors import DataError, HfFarmsWarning, ModelError
from hf_farms.metrics.quiet import quiet_lm_eval, require_hub, require_lm_eval
from hf_farms.metrics.task_scores import TaskScore, answers_of, is_finite
from hf_farms.reports import TaskRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TaskSuite"]

# Resamples for standard errors that have no formula. lm-eval takes 100,000, which is minutes for some tasks; with this
# many the standard error itself is right to about 2%.
BOOTSTRAPS = 1000


class TaskSuite:
    """Tasks of lm-eval with their questions.

    Args:
        names: of tasks, groups or tags.
        include_path: a folder with further tasks as YAML; they come before those of lm-eval.
        num_fewshot: examples before each question; None: what each task says.
        limit: only so many questions from the start of each task; None: all.

    Raises:
        HfFarmsError: lm-eval is not installed, or too old.
        ValueError: no task of this name, no such folder, or a count below its range.
        DataError: the questions of a task cannot be loaded.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        include_path: str | Path | None = None,
        num_fewshot: int | None = None,
        limit: int | None = None,
    ) -> None:
        if num_fewshot is not None and num_fewshot < 0:
            raise ValueError(f"num_fewshot must be at least 0, got {num_fewshot}.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}. Leave it out for all questions.")
        if include_path is not None and not Path(include_path).is_dir():
            raise ValueError(f"include_path must be a folder with YAML files of tasks, got {str(include_path)!r}.")
        require_lm_eval()
        self._num_fewshot, self._limit = num_fewshot, limit
        self._tasks: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        self._asked: list[str] = []
        with quiet_lm_eval():
            _seed()
            manager = _manager(list(names), include_path)
            for name in dict.fromkeys(names):
                self._load(manager, name)
            self._set_fewshot()

    def _load(self, manager: Any, name: str) -> None:
        try:
            loaded = manager.load([name])
        except Exception as error:  # datasets, pyarrow, the Hub client and the Python code of tasks have their own
            detail = str(error).strip().split("\n")[0]
            raise DataError(
                f"task must have questions that can be loaded, got {name!r} ({type(error).__name__}: {detail}).",
                hint="Check the network and HF_HUB_OFFLINE, or name tasks of your own with --include-path.",
            ) from error
        for task_name, task in loaded["tasks"].items():
            for flag, what in (("UNSAFE_CODE", "run code that the model writes"), ("MULTIMODAL", "show pictures")):
                if getattr(task, flag, False):
                    raise ValueError(f"tasks must be of text alone, got {task_name!r}, which would {what}.")
        self._tasks |= loaded["tasks"]
        self._groups |= loaded.get("groups") or {}
        group = self._groups.get(name)
        self._asked += [name] if group is not None and group.has_aggregation else list(loaded["tasks"])

    def _set_fewshot(self) -> None:
        fixed = []
        for name, task in self._tasks.items():
            own = task.get_config("num_fewshot")
            if self._num_fewshot is None or own == 0:
                # lm-eval leaves a 0 of the task alone: its prompt has its examples already, or must have none.
                task.set_config(key="num_fewshot", value=own or 0)
                fixed += [name] if self._num_fewshot else []
            else:
                task.set_config(key="num_fewshot", value=self._num_fewshot)
        if fixed:
            warnings.warn(
                f"num_fewshot is fixed at 0 by {', '.join(fixed)}; {self._num_fewshot} was asked for.",
                HfFarmsWarning,
                stacklevel=3,
            )

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | str = 8,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[TaskScore]:
        """Ask all questions.

        The seeds of `random`, numpy and torch are set, as lm-eval does it.

        Args:
            model: a causal language model.
            tokenizer: of the model; it gets a padding token if it has none.
            batch_size: questions at once, or "auto": as many as fit.
            progress: called with the kind of question, questions done and questions in all.

        Returns:
            Results in the order in which the tasks were named.

        Raises:
            ModelError: the model cannot answer.
        """
        with quiet_lm_eval() as said:
            import lm_eval
            from lm_eval.models.huggingface import HFLM

            _seed()
            for task in self._tasks.values():
                task.set_fewshot_seed(seed=_defaults().DEFAULT_OTHER_SEED)
            try:
                asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
                if progress is not None:
                    _watch(asked, progress)
                results = lm_eval.evaluate(
                    asked,
                    {"tasks": self._tasks, "groups": self._groups},
                    limit=self._limit,
                    bootstrap_iters=BOOTSTRAPS,
                )
            except Exception as error:  # assertions and Python code of tasks too
                # An assertion may say nothing but what it asserts.
                detail = str(error).strip().partition("\n")[0] or traceback.extract_tb(error.__traceback__)[-1].line
                raise ModelError(
                    f"tasks must run on this model, got {type(error).__name__}: {detail}",
                    hint="Where memory is short, lower --batch-size. --debug shows where it happened.",
                ) from error
        if cut := sum("exceeds model's maximum length" in line for line in said):
            warnings.warn(
                f"{cut} answers were longer with their questions than the {asked.max_length} tokens that the model can "
                "take, and were cut from the left.",
                HfFarmsWarning,
                stacklevel=2,
            )
        return [score for name in dict.fromkeys(self._asked) for score in self._scores(results, name)]

    def _scores(self, results: Any, name: str) -> list[TaskScore]:
        found = results["results"][name]
        scores = []
        for key, value in found.items():
            metric, comma, rule = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            shown = metric if rule == "none" else key
            if not is_finite(value):
                warnings.warn(f"{name} has no finite {shown}; it is left out.", HfFarmsWarning, stacklevel=3)
                continue
            stderr = found.get(f"{metric}_stderr,{rule}")
            record = TaskRecord(
                task=name,
                metric=shown,
                value=float(value),
                stderr=float(stderr) if is_finite(stderr) else None,
                num_fewshot=int(results["n-shot"].get(name, 0)),
                num_samples=int(found["sample_len"]),
                version=str(results["versions"].get(name)),
                total_samples=self._total(name),
            )
            samples = [s for s in results["samples"].get(name, ()) if s["filter"] == rule]
            scores.append(
                TaskScore(record, answers_of(samples, metric, value), tuple(s["prompt_hash"] for s in samples))
            )
        return scores

    def _total(self, name: str) -> int:
        group = self._groups.get(name)
        tasks = [self._tasks[name]] if group is None else group.get_all_tasks()
        return sum(len(task.eval_docs) for task in tasks)


def _manager(names: list[str], include_path: str | Path | None) -> Any:
    """What finds tasks by name. lm-eval's own are ten thousand files, read only where a name is not in the folder.

    Raises:
        ValueError: nothing has this name.
        DataError: it is of lm-eval, whose questions are on the Hub, which cannot be reached.
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
            repair = f"Did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists them."
            raise ValueError(f"tasks must be names that lm-eval knows, got {name!r}. {repair}")
    folder = Path(include_path).resolve() if include_path is not None else None
    places = [manager.task_index[name].yaml_path for name in names]
    if folder is None or not all(place and place.resolve().is_relative_to(folder) for place in places):
        require_hub()
    return manager


def _defaults() -> Any:
    from lm_eval import defaults

    return defaults


def _seed() -> None:
    """The seeds of lm-eval: some tasks shuffle when they are loaded, some models sample when they are asked."""
    import random

    import numpy as np
    import torch

    random.seed(_defaults().DEFAULT_RANDOM_SEED)
    np.random.seed(_defaults().DEFAULT_OTHER_SEED)
    torch.manual_seed(_defaults().DEFAULT_OTHER_SEED)


def _watch(asked: Any, progress: Callable[[str, int, int], None]) -> None:
    """Report progress: the model tells its cache of every answer."""

    class Watcher:
        """What lm-eval takes for a cache."""

        kind, done, total = "", 0, 0

        def add_partial(self, *_: object) -> None:
            self.done += 1
            progress(self.kind, self.done, self.total)

    watcher = Watcher()
    asked.set_cache_hook(watcher)
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        method = getattr(asked, kind)

        def counted(requests: Sequence[Any], kind: str = kind, method: Callable[..., Any] = method) -> Any:
            watcher.kind, watcher.done, watcher.total = kind, 0, len(requests)
            return method(requests)

        setattr(asked, kind, counted)
