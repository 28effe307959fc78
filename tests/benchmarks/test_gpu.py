"""gpu.py on a CPU with small sizes: every section ends, what has ended is not run again, limits hold."""

import json
import os
import signal
import sys
import time
import unittest
from pathlib import Path

import gpu
import pytest
from processes import finished

SCRIPT = Path(gpu.__file__)
ENVIRONMENT = {"device": "cpu", "torch": "2.13.0", "transformers": "5.23.0", "small": True}


def test_every_section_ends_with_rows(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    output = tmp_path / "gpu.json"
    # Limits are those of a GPU; a busy CPU may take longer, and that is no fault of a section.
    done = finished([sys.executable, SCRIPT, "--output", output, "--device", "cpu", "--small", "--minutes", "1000"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = json.loads(output.read_text())
    assert content["environment"]["device"] == "cpu"
    assert list(content["sections"]) == list(gpu.SECTIONS)
    serving = content["sections"].pop("serving")
    assert serving["status"].startswith("skipped: ")
    assert f"\nserving: {serving['status']}, " in done.stdout
    for name, section in content["sections"].items():
        assert section["status"] == "done" or section["status"].startswith("stopped"), (name, section["status"])
        assert section["rows"] or section["status"] != "done"
        assert f"## {name}" in done.stdout
    trained = {row["arm"]: row["trained"] for row in content["sections"]["training"]["rows"]}
    assert trained["S2FT"] < trained["full"]
    for row in content["sections"]["fsdp2"]["rows"]:
        weights = "plain" if row["checkpoints"] == "FULL_STATE_DICT" else "sharded"
        expected = {"resume": "exact", "weights": weights, "adapter": "of the model", "failed": None}
        assert {name: row[name] for name in expected} == expected
    callbacks = content["sections"]["callbacks"]
    expected = [
        (name, compiled, None) for compiled in (False, True) for name in ("none", "FarmsLRCallback", "S2FTCallback")
    ]
    # A section that its limit stopped on a busy CPU has the first rows.
    count = len(expected) if callbacks["status"] == "done" else len(callbacks["rows"])
    found = [(row["callback"], row["compiled"], row["failed"]) for row in callbacks["rows"]]
    assert found == expected[:count]
    assert {row["zeros"] for row in content["sections"]["pruning-wanda"]["rows"]} == {0.5}


def test_limits_fit_two_runs_of_nine_minutes_and_one_with_vllm():
    limits = [section.limit for name, section in gpu.SECTIONS.items() if name != "serving"]
    first = next(i for i in range(len(limits) + 1) if i == len(limits) or sum(limits[: i + 1]) > 540)
    assert first >= 5
    assert sum(limits[first:]) <= 540
    assert gpu.SECTIONS["serving"].limit <= 540


def test_sections_that_have_ended_are_not_run_again(tmp_path):
    results = gpu.Results(tmp_path / "gpu.json", ENVIRONMENT)
    for name, status in (
        ("a", "done"),
        ("b", "stopped after 9 s"),
        ("c", "failed: x"),
        ("d", "running"),
        ("e", "skipped: x"),
    ):
        results.write(name, [{"s": 1.0}], status, 1.0)
    again = gpu.Results(tmp_path / "gpu.json", ENVIRONMENT)
    assert [name for name in "abcdef" if not again.ended(name)] == ["c", "d", "e", "f"]
    assert again.content == results.content


def test_results_of_another_device_are_not_mixed(tmp_path):
    gpu.Results(tmp_path / "gpu.json", ENVIRONMENT).write("a", [], "done", 1.0)
    with pytest.raises(SystemExit, match=r"output must be new or of the same device and versions, got '.*gpu.json'"):
        gpu.Results(tmp_path / "gpu.json", ENVIRONMENT | {"device": "H100"})


def endless(options):
    yield {"number": 1}
    time.sleep(10_000)


def killed(options):
    os.kill(os.getpid(), signal.SIGKILL)
    yield {}


def skipped(options):
    yield {"number": 1}
    raise unittest.SkipTest("no such device")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_section_that_takes_too_long_keeps_its_rows_and_one_that_dies_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sections", sys.modules[__name__])
    shown = []
    rows, status = gpu.run_section("sections:endless", 1, None, {}, lambda rows: shown.append(len(rows)))
    assert status == "stopped after 1 s"
    assert shown == [1] * len(rows)
    rows, status = gpu.run_section("sections:killed", 600, None, {}, shown.append)
    assert (rows, status) == ([], "failed: its process ended with -9")
    rows, status = gpu.run_section("sections:skipped", 600, None, {}, shown.append)
    assert (rows, status) == ([{"number": 1}], "skipped: no such device")
