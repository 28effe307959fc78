"""docs/processes.md: its launch line of `prune` works as it stands there."""

import os
import shlex
import sys
from pathlib import Path

from processes import finished, free_port

from hf_farms import PruneReport

GUIDE = Path(__file__).parents[2] / "docs" / "processes.md"


def test_the_launch_line_prunes(tmp_path):
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    launcher, launch, *arguments = shlex.split(next(line for line in lines if " prune demo" in line))
    assert (launcher, launch) == ("accelerate", "launch")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", free_port(), *arguments]
    done = finished(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    # The first process alone prints.
    assert done.stdout.count("Sparsity: 50.0000%") == 1
    report = PruneReport.load(tmp_path / "demo-farms-wanda-50" / "hf_farms_report.json")
    assert report.sparsity == 0.5
    assert report.command == "hf-farms prune demo --no-baseline"
