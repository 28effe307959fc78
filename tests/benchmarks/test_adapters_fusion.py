"""adapters_fusion.py on the demo: every arm is trained, fused and shown, and a second call computes nothing."""

import json
import sys
from pathlib import Path

import pytest
from adapters_fusion_report import report
from processes import finished

from hf_farms.demo import demo_model

SCRIPT = Path(__file__).with_name("adapters_fusion.py")
ARMS = ("disjoint, by score", "disjoint, at random", "the same channels", "LoRA, `cat`")


def questions(path, text):
    rows = [{"instruction": f"What is {i}? {text}", "output": f"It is {i}."} for i in range(60)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_every_arm_is_trained_and_fused(tmp_path):
    files = [questions(tmp_path / f"{task}.json", task) for task in ("arithmetic", "commonsense")]
    sizes = ["--steps=2", "--batch=2", "--held-out=2", "--test=2", "--seeds=1", "--rates=0.001", "--rank=2"]
    command = [sys.executable, SCRIPT, tmp_path / "rows.jsonl", "--model", demo_model()]
    command += ["--arithmetic", files[0], "--commonsense", files[1], *sizes, "--budget=0.05"]
    done = finished(command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for arm in ARMS:
        assert done.stdout.count(f"| {arm} | arithmetic |") == done.stdout.count(f"| {arm} | commonsense |") > 0
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    again = finished(command)
    assert again.returncode == 0
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == rows


def single(arm, task, seed, test):
    return {"kind": "single", "arm": arm, "task": task, "seed": seed, "gain": 1.0, "steps": 10, "test": test}


def test_the_tables(capsys):
    """Two seeds; fusing loses half of the gain of one arm and nothing of the other's."""
    rows = [{"kind": "before", "task": task, "test": [2.0, 4.0]} for task in ("arithmetic", "commonsense")]
    for arm, after in (("random", [1.0, 3.0]), ("lora", [1.5, 3.5])):
        for seed in range(2):
            rows += [single(arm, task, seed, [1.0, 3.0]) for task in ("arithmetic", "commonsense")]
            losses = dict.fromkeys(("arithmetic", "commonsense"), after)
            shown = {"weight": 1.0, "test": losses, "whole": losses}
            rows.append({"kind": "fused", "arm": arm, "seed": seed, **shown})
    report(rows)
    shown = capsys.readouterr().out
    assert "| disjoint, at random | arithmetic | 10 | 1.000 ± 0.000 | 100 ± 0% | 100 ± 0% | 1, 1 |" in shown
    assert "| LoRA, `cat` | commonsense | 10 | 1.000 ± 0.000 | 50 ± 0% | 50 ± 0% | 1, 1 |" in shown
    assert "| LoRA, `cat` | arithmetic | +0.500 ± 0.000 | +0.500 ± 0.000 |" in shown


@pytest.mark.parametrize("seeds", [1, 2])
def test_errors_are_over_seeds_and_questions(seeds, capsys):
    """The questions differ by 1 around their mean, the seeds not at all."""
    rows = [{"kind": "before", "task": task, "test": [2.0, 4.0]} for task in ("arithmetic", "commonsense")]
    for arm, after in (("random", [1.0, 3.0]), ("lora", [1.5, 4.5])):
        for seed in range(seeds):
            rows += [single(arm, task, seed, [1.0, 3.0]) for task in ("arithmetic", "commonsense")]
            losses = dict.fromkeys(("arithmetic", "commonsense"), after)
            rows.append({"kind": "fused", "arm": arm, "seed": seed, "weight": 1.0, "test": losses, "whole": losses})
    report(rows)
    assert "| LoRA, `cat` | arithmetic | +1.000 ± 0.500 |" in capsys.readouterr().out
