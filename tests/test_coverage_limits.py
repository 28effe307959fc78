"""`.github/coverage_limits.py`, with which `make coverage` ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".github" / "coverage_limits.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the source tree")


@pytest.mark.parametrize(
    ("lines", "branches", "status"), [(930, 85, 0), (929, 85, 1), (930, 84, 1)], ids=["enough", "lines", "branches"]
)
def test_each_limit_is_one_of_its_own(lines, branches, status, tmp_path):
    totals = {"covered_lines": lines, "num_statements": 1000, "covered_branches": branches, "num_branches": 100}
    files = {name: {"summary": {"missing_lines": count}} for name, count in {"a.py": 0, "b.py": 7}.items()}
    (tmp_path / "coverage.json").write_text(json.dumps({"totals": totals, "files": files}))
    command = [sys.executable, str(SCRIPT), str(tmp_path / "coverage.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout.splitlines() == [
        "    7 lines of b.py",
        f"{lines / 10:.1f}% of 1,000 lines, at least 93%",
        f"{branches:.1f}% of 100 branches, at least 85%",
    ]
