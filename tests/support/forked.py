"""Commands of `hf-farms` in forks of one process: what they import takes seconds, and is imported once."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import LIMIT, MOMENTS

# Every line is a command that runs in a fork; one that is to be killed kills itself there at a moment.
SERVER = """
import json, os, sys
from moment import Moment
import transformers
from transformers.models.llama import modeling_llama
import matplotlib.backends.backend_agg, matplotlib.figure
import hf_farms_cli.app, hf_farms.workflows.prune, hf_farms_cards.figures.blocks
from hf_farms_cli.__main__ import main

for line in sys.stdin:
    job = json.loads(line)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.chdir(job["folder"])
            for stream, path in enumerate(job["streams"], 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), stream)
            sys.argv = ["hf-farms", *job["arguments"]]
            moment = Moment(**job["moment"])
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            with open(job["changes"], "w") as file:
                file.write(str(moment.changes))
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """`with Commands() as commands:` runs them one after another, all with the same variables."""

    def __init__(self, variables=None):
        self._folder = tempfile.TemporaryDirectory()
        *self._streams, self._changes = (Path(self._folder.name, name) for name in ("stdout", "stderr", "changes"))
        for stream in self._streams:
            stream.touch()
        variables = {"HF_HUB_OFFLINE": "1", **os.environ} if variables is None else variables
        paths = [str(MOMENTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait(LIMIT)
        self._server.stdout.close()
        self._folder.cleanup()

    def start(self, folder, *arguments, **moment):
        """Begin a command; returns the process that runs it.

        Args:
            folder: where it runs.
            arguments: of the command.
            moment: when it gets a signal, as `at` has it; without a signal it is killed.
        """
        moment = {"signal": signal.SIGKILL, **moment} if moment else {}
        job = {"folder": str(folder), "arguments": [str(a) for a in arguments], "moment": moment}
        job |= {"streams": [str(stream) for stream in self._streams], "changes": str(self._changes)}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def ended(self):
        """Wait for its end: status (minus the signal), stdout and stderr."""
        code = int(self._server.stdout.readline())
        return subprocess.CompletedProcess("hf-farms", code, *(stream.read_text() for stream in self._streams))

    def run(self, folder, *arguments, **moment):
        """Status and all that was printed, the number of changes of files last if it was not killed."""
        self._changes.unlink(missing_ok=True)
        self.start(folder, *arguments, **moment)
        done = self.ended()
        changes = f"changes: {self._changes.read_text()}" if self._changes.exists() else ""
        return done.returncode, " ".join(f"{done.stdout} {done.stderr} {changes}".split())
