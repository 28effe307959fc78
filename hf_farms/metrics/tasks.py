"""TaskSuite: load tasks of lm-eval once, and run them on any number of models.

lm-eval is an optional dependency and slow to import, so it is imported when tasks are loaded.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.errors import DataError, HfFarmsWarning, ModelError
from hf_farms.metrics.quiet import quiet_lm_eval, require_lm_eval
from hf_farms.metrics.task_loading import check_task_options, lm_eval_defaults, set_seeds, task_manager
from hf_farms.metrics.task_scores import TaskScore, answers_of, is_finite
from hf_farms.reports import TaskRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TaskSuite"]

# Bootstrap resamples for standard errors without a formula. The default of lm-eval, 100,000, takes minutes for some
# tasks; with 1000 the standard error is accurate to about 2%.
BOOTSTRAPS = 1000


class TaskSuite:
    """Tasks of lm-eval with their questions.

    Args:
        names: names of tasks, groups or tags.
        include_path: folder with additional tasks as YAML; they take precedence over those of lm-eval.
        num_fewshot: examples before each question; None for the default of each task.
        limit: use only the first questions of each task; None for all.

    Raises:
        HfFarmsError: lm-eval is not installed, or too old.
        ValueError: unknown task, missing folder, or a number out of range.
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
        check_task_options(include_path=include_path, num_fewshot=num_fewshot, limit=limit)
        require_lm_eval()
        self._num_fewshot, self._limit = num_fewshot, limit
        self._tasks: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        self._result_names: list[str] = []
        with quiet_lm_eval():
            set_seeds()
            manager = task_manager(list(names), include_path)
            for name in dict.fromkeys(names):
                self._load(manager, name)
            self._set_fewshot()

    def _load(self, manager: Any, name: str) -> None:
        try:
            loaded = manager.load([name])
        except Exception as error:  # datasets, pyarrow, the Hub client and Python code of tasks raise many types
            detail = str(error).strip().split("\n")[0]
            raise DataError(
                f"task must have questions that can be loaded, got {name!r} ({type(error).__name__}: {detail}).",
                hint="Check the network and HF_HUB_OFFLINE, or name tasks of your own with `include_path`.",
            ) from error
        for task_name, task in loaded["tasks"].items():
            for flag, action in (("UNSAFE_CODE", "run code that the model writes"), ("MULTIMODAL", "use images")):
                if getattr(task, flag, False):
                    raise ValueError(f"tasks must use only text, got {task_name!r}, which would {action}.")
        self._tasks |= loaded["tasks"]
        self._groups |= loaded.get("groups") or {}
        group = self._groups.get(name)
        self._result_names += [name] if group is not None and group.has_aggregation else list(loaded["tasks"])

    def _set_fewshot(self) -> None:
        fixed = []
        for name, task in self._tasks.items():
            default = task.get_config("num_fewshot")
            if self._num_fewshot is None or default == 0:
                # lm-eval does not override a 0: the prompt already contains examples, or must have none.
                task.set_config(key="num_fewshot", value=default or 0)
                fixed += [name] if self._num_fewshot else []
            else:
                task.set_config(key="num_fewshot", value=self._num_fewshot)
        if fixed:
            warnings.warn(
                f"num_fewshot is fixed at 0 by {', '.join(fixed)}; {self._num_fewshot} is ignored.",
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
        """Run all tasks on a model.

        Sets the seeds of `random`, numpy and torch, as lm-eval does.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer; it gets a padding token if it has none.
            batch_size: questions per batch, or "auto" for as many as fit.
            progress: called with the request type, the number of finished questions and of all questions.

        Returns:
            Results in the order of the task names.

        Raises:
            ModelError: the tasks cannot run on this model.
        """
        with quiet_lm_eval() as messages:
            import lm_eval
            from lm_eval.models.huggingface import HFLM

            set_seeds()
            for task in self._tasks.values():
                task.set_fewshot_seed(seed=lm_eval_defaults().DEFAULT_OTHER_SEED)
            try:
                adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
                if progress is not None:
                    _report_progress(adapter, progress)
                results = lm_eval.evaluate(
                    adapter,
                    {"tasks": self._tasks, "groups": self._groups},
                    limit=self._limit,
                    bootstrap_iters=BOOTSTRAPS,
                )
            except Exception as error:  # includes assertions, and Python code of tasks
                # An assertion may have no message: show its source line.
                detail = str(error).strip().partition("\n")[0] or traceback.extract_tb(error.__traceback__)[-1].line
                raise ModelError(
                    f"tasks must run on this model, got {type(error).__name__}: {detail}",
                    hint="Where memory is short, lower `batch_size`. `error.__cause__` shows where it happened.",
                ) from error
        if truncated := sum("exceeds model's maximum length" in line for line in messages):
            warnings.warn(
                f"{truncated} prompts with their answers were longer than the {adapter.max_length} tokens that the "
                "model supports, and were truncated from the left.",
                HfFarmsWarning,
                stacklevel=2,
            )
        return [score for name in dict.fromkeys(self._result_names) for score in self._scores(results, name)]

    def _scores(self, results: Any, name: str) -> list[TaskScore]:
        metrics = results["results"][name]
        scores = []
        for key, value in metrics.items():
            metric, comma, rule = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            full_name = metric if rule == "none" else key
            if not is_finite(value):
                warnings.warn(f"{name} has no finite {full_name}; it is left out.", HfFarmsWarning, stacklevel=3)
                continue
            stderr = metrics.get(f"{metric}_stderr,{rule}")
            record = TaskRecord(
                task=name,
                metric=full_name,
                value=float(value),
                stderr=float(stderr) if is_finite(stderr) else None,
                num_fewshot=int(results["n-shot"].get(name, 0)),
                num_samples=int(metrics["sample_len"]),
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


def _report_progress(adapter: Any, progress: Callable[[str, int, int], None]) -> None:
    """Report progress through the cache hook: lm-eval calls it for every answer."""

    class ProgressHook:
        """Cache hook that counts answers."""

        kind, done, total = "", 0, 0

        def add_partial(self, *_: object) -> None:
            self.done += 1
            progress(self.kind, self.done, self.total)

    hook = ProgressHook()
    adapter.set_cache_hook(hook)
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        method = getattr(adapter, kind)

        def counted(requests: Sequence[Any], kind: str = kind, method: Callable[..., Any] = method) -> Any:
            hook.kind, hook.done, hook.total = kind, 0, len(requests)
            return method(requests)

        setattr(adapter, kind, counted)
