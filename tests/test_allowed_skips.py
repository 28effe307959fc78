"""The plugin of `make test`: a skip for a missing package fails the run."""

import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent / "support"
ALLOWED = """
import pytest

@pytest.mark.skipif(True, reason="needs a CUDA device")
def test_on_a_gpu():
    pass
"""
MISSING = """
import pytest

def test_of_a_package():
    pytest.importorskip("no_such_package", reason="no_such_package is not installed")
"""
WHOLE_FILE = """
import pytest

pytest.importorskip("no_such_package", reason="no_such_package is not installed")
"""


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        (ALLOWED, 0, None),
        (MISSING, 1, "NOT ALLOWED TO BE SKIPPED test_it.py::test_of_a_package: no_such_package is not installed"),
        (WHOLE_FILE, 1, "NOT ALLOWED TO BE SKIPPED test_it.py: no_such_package is not installed"),
    ],
    ids=["a GPU", "a package", "a whole file"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_skips_for_packages_fail_the_run(code, status, line, workers, tmp_path):
    (tmp_path / "test_it.py").write_text(code)
    (tmp_path / "test_other.py").write_text("def test_passes():\n    pass\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        str(workers),
        "-p",
        "allowed_skips",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "."], cwd=tmp_path, env={"PYTHONPATH": str(SUPPORT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout
    assert line is None or line in done.stdout
