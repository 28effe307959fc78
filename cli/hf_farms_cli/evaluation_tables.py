"""Tables of `eval`."""

from __future__ import annotations

from hf_farms.reports import EvaluationReport, PerplexityScore, TaskRecord
from hf_farms_cli.console import Format, print_notes, print_remark, say
from hf_farms_cli.tables import MISSING, print_table

__all__ = ["print_evaluation"]


def print_evaluation(result: EvaluationReport, output_format: Format) -> None:
    """Print the results in the given format."""
    rows = _rows(result)
    if output_format == "json":
        say(result.to_json(), newline=False)
    elif output_format == "quiet":
        for row in rows:
            say(row[1])
    else:
        paired = any(row[3] != MISSING for row in rows)
        headings = ("result", "value", "± stderr", "dense", "difference", "± stderr", "of")
        columns = range(7) if paired else (0, 1, 2, 6)
        print_table(
            f"{result.model}, {result.dtype}",
            [headings[column] for column in columns],
            [[row[column] for column in columns] for row in rows],
            output_format,
        )
        if result.perplexity is not None:
            print_remark(_remark(result.perplexity), output_format)
        print_notes(result.notes)


def _remark(p: PerplexityScore) -> str:
    text = f"Perplexity of {p.config.source} in windows of {p.context_length} tokens"
    if p.nll_difference is None:
        return f"{text}."
    stderr = "" if p.nll_difference_stderr is None else f" ± {p.nll_difference_stderr:.4f}"
    return f"{text}; its logarithm differs by {p.nll_difference:+.4f}{stderr} (paired over windows)."


def _rows(result: EvaluationReport) -> list[tuple[str, ...]]:
    """Return rows of name, value, its error, dense value, difference, its error, and the number of samples."""
    rows: list[tuple[str, ...]] = []
    if (p := result.perplexity) is not None:
        rows.append(_row("perplexity", p.value, None, p.dense, None, f"{p.num_tokens} tokens", digits=2))
    if (s := result.sparsity) is not None:
        rows.append(_row("sparsity of the layers", s.value, None, None, None, ""))
        rows.append(_row("sparsity of all parameters", s.of_parameters, None, None, None, f"{s.num_parameters}"))
    return [*rows, *map(_task_row, result.tasks)]


def _task_row(task: TaskRecord) -> tuple[str, ...]:
    shots = f" ({task.num_fewshot}-shot)" if task.num_fewshot else ""
    name = f"{task.task} {task.metric}{shots}"
    return _row(name, task.value, task.stderr, task.dense, task.difference_stderr, f"{task.num_samples} questions")


def _row(
    name: str,
    value: float,
    stderr: float | None,
    dense: float | None,
    difference_stderr: float | None,
    count: str,
    digits: int = 4,
) -> tuple[str, ...]:
    def number(x: float | None, sign: str = "") -> str:
        return MISSING if x is None else f"{x:{sign}.{digits}f}"

    difference = None if dense is None else value - dense
    return (
        name,
        number(value),
        number(stderr),
        number(dense),
        number(difference, "+"),
        number(difference_stderr),
        count or MISSING,
    )
