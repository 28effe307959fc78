"""Processes that tests start: waited for by what happens, and sent signals at moments of their work.

No test may depend on how fast the machine is. `LIMIT` ends what hangs, and is all of time that a test may know.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

LIMIT = 1200  # seconds; below the limit of a test in pyproject.toml, so that what was seen is shown
MOMENTS = Path(__file__).parent / "moments"


class Process(subprocess.Popen):
    """A process whose output is kept in files: pipes stay open for as long as any child of it lives."""

    def __init__(self, command, **options):
        self.streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - closed by `ended`
        super().__init__([str(word) for word in command], stdout=self.streams[0], stderr=self.streams[1], **options)

    def printed(self):
        """All of stdout and stderr so far."""
        for stream in self.streams:
            stream.seek(0)
        return [stream.read() for stream in self.streams]

    def ended(self):
        """Wait for its end: status, stdout and stderr."""
        try:
            self.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.fail(f"did not end in {LIMIT} s")
        stdout, stderr = self.printed()
        for stream in self.streams:
            stream.close()
        return subprocess.CompletedProcess(self.args, self.returncode, stdout, stderr)

    def fail(self, why):
        """End it, and the test with what it printed."""
        self.kill()
        self.wait()
        pytest.fail("\n".join([f"{self.args} {why}. It printed:", *self.printed()]))


def finished(command, **options):
    """Run a command to its end."""
    return Process(command, **options).ended()


def wait_for(event, *, process=None):
    """Wait until `event()` is true, and return that; a process that ended before it fails the test."""
    deadline = time.monotonic() + LIMIT
    while not (found := event()):
        if process is not None and process.poll() is not None:
            process.fail(f"ended with {process.returncode} too early")
        if time.monotonic() > deadline:
            why = f"waited {LIMIT} s for {event}"
            process.fail(why) if process is not None else pytest.fail(why)
        time.sleep(0.005)
    return found


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


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
