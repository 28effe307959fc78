"""Processes that tests start: waited for by what happens, and sent signals at moments of their work.

No test may depend on how fast the machine is. `LIMIT` ends what hangs, and is all of time that a test may know.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

LIMIT = 1200  # seconds; below the limit of a test in pyproject.toml, so that what was seen is shown
MOMENTS = Path(__file__).parent / "moments"


def finished(command, **options):
    """Run a command to its end; what it printed is kept as text."""
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        return ended(process)


def ended(process):
    """Wait for the end of a process that was started with pipes."""
    try:
        stdout, stderr = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        pytest.fail(f"{process.args} did not end in {LIMIT} s. It printed:\n{stdout}\n{stderr}")
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_for(event, *, process=None):
    """Wait until `event()` is true, and return that; a process that ended before it fails the test."""
    deadline = time.monotonic() + LIMIT
    while not (found := event()):
        if process is not None and process.poll() is not None:
            pytest.fail(f"{process.args} ended with {process.returncode} too early. It printed:\n{ended(process)}")
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            pytest.fail(f"waited {LIMIT} s{f'. It printed:{ended(process)}' if process else ''}")
        time.sleep(0.005)
    return found


def at(signal, *, imports=None, change=None, half=False, made=None, number=1):
    """Variables for a Python process that sends itself a signal at a moment.

    Args:
        signal: number of the signal.
        imports: before this module is imported.
        change: before the so-manieth change of a file or folder below the folder that it starts in,
        half: or rather before the next file there gets its name, and half of its content is lost.
        made: after a file whose path fits this pattern was given its name,
        number: and so many times.
    """
    moment = {"signal": signal, "imports": imports, "change": change, "half": half, "made": made, "number": number}
    paths = [str(MOMENTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "HF_FARMS_TEST_MOMENT": json.dumps(moment)}
