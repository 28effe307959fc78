"""The statistics and tables of allocations.py, and the tasks of local_tasks.py."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs scipy, which lm-eval brings")

import allocations_report
import allocations_statistics
import local_tasks

RESULTS = Path(__file__).parent / "allocations_results"


def test_errors_of_seeds_and_windows_cover_the_truth():
    """Means of data with effects of seeds and windows lie within the interval in about 95% of the draws."""
    generator = np.random.default_rng(0)
    inside = narrow = 0
    for _ in range(400):
        seeds, windows = generator.normal(0, 0.03, (5, 1)), generator.normal(0, 0.05, (1, 40))
        values = 0.1 + seeds + windows + generator.normal(0, 0.02, (5, 40))
        found = allocations_statistics.crossed(values)
        inside += abs(found.mean - 0.1) <= found.quantile * found.error
        # Windows alone, as if seeds did not matter.
        narrow += abs(found.mean - 0.1) <= 2.02 * values.mean(0).std(ddof=1) / 40**0.5
    assert 0.92 <= inside / 400 <= 0.99
    assert narrow / 400 < 0.85


def test_one_seed_has_the_error_of_windows():
    values = np.random.default_rng(1).normal(0, 1, (1, 40))
    found = allocations_statistics.crossed(values)
    assert found.error == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert str(allocations_statistics.Difference(-0.5, 0.1, 2.0)) == "**−0.500 ± 0.100**"
    assert str(allocations_statistics.Difference(0.1, 0.1, 2.0)) == "+0.100 ± 0.100"
    assert str(allocations_statistics.Difference(-0.002, 0.0004, 2.0)) == "**−0.0020 ± 0.0004**"


def _row(seed, nll, device="cpu"):
    return {"seed": seed, "nll": nll, "device": device}


def test_rows_are_compared_at_common_seeds():
    rows = [_row(seed, [float(seed), 1.0]) for seed in (1, 2)]
    base = [_row(seed, [0.0, 0.0]) for seed in (2, 3)]
    assert allocations_statistics.compared(rows, base).mean == 1.5
    assert allocations_statistics.compared(rows[:1], base) is None


def test_rows_are_compared_on_one_device_where_both_have_one():
    rows = [_row(1, [1.0, 1.0], "gpu"), _row(1, [5.0, 6.0])]
    found = allocations_statistics.compared(rows, [_row(1, [4.0, 4.0])])
    assert (found.mean, found.is_mixed) == (1.5, False)
    found = allocations_statistics.compared(rows[:1], [_row(1, [4.0, 5.0])])
    assert (found.mean, found.is_mixed) == (-3.5, True)
    assert str(found).endswith(" †")
    with pytest.raises(ValueError, match="two rows of seed 1 on cpu: rows of several settings"):
        allocations_statistics.compared([rows[1], rows[1]], rows)


def test_the_share_of_a_gap_is_that_of_the_means():
    dense = {"nll": [1.0, 2.0]}
    base = [_row(seed, [2.0, 4.0]) for seed in (1, 2)]
    rows = [_row(seed, [1.5, 3.0]) for seed in (1, 2)]
    assert allocations_statistics.closed_gap(rows, base, dense) == (0.5, 0.0, False)
    assert allocations_statistics.closed_gap(rows, [], dense) is None


def test_questions_become_tasks(tmp_path):
    entries = [
        {"instruction": "... question: Who?\n\nAnswer1: A b. Answer2: C\n\nAnswer format: ...", "answer": "answer2"},
        {"instruction": "... question: is it?\n\nAnswer format: true/false", "answer": "false"},
        {"instruction": "no question", "answer": "answer1"},
    ]
    (tmp_path / "test_ARC-Easy.json").write_text(json.dumps(entries))
    assert local_tasks.write_tasks(tmp_path, tmp_path / "out", None) == ["local_arc_easy"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "local_arc_easy.jsonl").read_text().splitlines()]
    assert lines == [
        {"question": "Who?", "choices": ["A b.", "C"], "gold": 1},
        {"question": "is it?", "choices": ["true", "false"], "gold": 1},
    ]


def test_gains_of_continuations_are_of_the_same_allocation_and_seed():
    same = {"pattern": "unstructured", "method": "wanda", "refine": "none", "recover": "submodule", "data": 1}

    def row(allocation, passes, written, seed, nll):
        recovery = {"allocation": allocation, "passes": passes, "written": written}
        return {**same, **recovery, "sparsity": 0.5, **_row(seed, [nll, nll + 1]), "kl": [nll / 2] * 2}

    table = allocations_report.gains(
        [
            row("uniform", 2, 3, 1, 3.0),
            row("uniform", 6, 0, 1, 3.5),
            row("uniform", 6, 0, 2, 9.0),
            row("uniform", 4, 0, 1, 8.0),
            row("farms", 6, 0, 1, 7.0),
            row("auto", 2, 3, 1, 3.0),
        ]
    )
    _, line = table
    assert line[:5] == ("50%", "", "`uniform`", "continuations − six passes", 1)
    assert line[5].mean == -0.5


def test_tables_of_the_benchmarks_are_those_of_the_rows(capsys):
    """BENCHMARKS.md has the tables that `allocations.py report` prints for these rows; three others are not of rows."""
    text = (RESULTS.parents[2] / "BENCHMARKS.md").read_text(encoding="utf-8")
    section = text.partition("### Allocations, masks and recovery\n")[2].partition("\n### ")[0]
    tables = [part for part in section.split("\n\n") if part.startswith("| ")]
    for folder in (RESULTS, RESULTS / "selection", RESULTS / "demo"):
        allocations_report.print_tables(folder)
    printed = [part.strip() for part in capsys.readouterr().out.split("\n\n") if part.startswith("| ")]
    printed = [part.partition("\nDense:")[0] for part in printed]
    assert len(printed) > 10
    assert [table for table in printed if table not in tables] == []
    others = [table.splitlines()[0].split(" | ")[0] for table in tables if table not in printed]
    assert others == ["| model", "| sparsity", "| outcome"]
