"""Memory of reading a checkpoint; the larger one is written, 8.5 GB, by `make test-slow`."""

import sys
from pathlib import Path

import pytest
from processes import finished

SPECTRA = Path(__file__).parents[1] / "benchmarks" / "spectra.py"

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon, which Linux has")


@pytest.mark.slow
def test_a_checkpoint_of_8_gigabytes_needs_little_memory(tmp_path):
    command = [sys.executable, SPECTRA, "stream", "--gigabytes", "8.5", "--folder", tmp_path]
    done = finished(command)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| ") and line[2].isdigit())
    gigabytes, _, _, peak = (float(cell) for cell in row.split("|")[1:5])
    assert gigabytes > 8
    assert peak < 1536
