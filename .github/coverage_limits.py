"""Fail if the tests reach less of the library than they must: `coverage_limits.py coverage.json`.

The file is that of `coverage json`. The limit of coverage.py itself is one for lines and branches together.
"""

import json
import sys
from pathlib import Path

# Percent.
LINES, BRANCHES = 93, 85
SHOWN = 15


def main(path: str) -> None:
    """Print the totals and the files with the most lines that no test reaches; exit with 1 below a limit."""
    report = json.loads(Path(path).read_text())
    totals = report["totals"]
    parts = {
        "lines": (totals["covered_lines"], totals["num_statements"], LINES),
        "branches": (totals["covered_branches"], totals["num_branches"], BRANCHES),
    }
    missing = {name: file["summary"]["missing_lines"] for name, file in report["files"].items()}
    for name in sorted(missing, key=lambda name: -missing[name])[:SHOWN]:
        if missing[name]:
            print(f"{missing[name]:5} lines of {name}")
    low = False
    for name, (covered, count, limit) in parts.items():
        percent = 100 * covered / max(count, 1)
        low |= percent < limit
        print(f"{percent:.1f}% of {count:,} {name}, at least {limit}%")
    if low:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1])
