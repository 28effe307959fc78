"""A process that uses a LocalHub with the unmodified client, for many calls: starting one takes seconds.

The client reads its endpoint when it is imported, so it cannot run in the process of the tests.
"""

import json
import os
import subprocess
import sys

from processes import LIMIT

WORKER = """
import json, os, sys, time
from pathlib import Path
answers, sys.stdout = sys.stdout, sys.stderr
waits, sleep = [], time.sleep
variables = dict(os.environ)

def brief(seconds):
    # Waits are noted and cut short.
    waits.append(seconds)
    sleep(seconds / 200)

time.sleep = brief
from typer.testing import CliRunner
from hf_farms import S2FTAdapter, hub
from hf_farms.data.datasets import check_dataset
from hf_farms.loading.names import ModelRef
from hf_farms_cli.app import app

def call(name, arguments, options):
    if name == "cli":
        done = CliRunner().invoke(app, arguments)
        return {"status": done.exit_code, "stdout": done.stdout, "stderr": done.stderr}
    functions = {
        "check_dataset": check_dataset,
        "push_adapter": lambda folder, to, **more: S2FTAdapter.from_pretrained(folder).push_to_hub(to, **more),
        "copy_adapter": lambda name, folder, **more: S2FTAdapter.from_pretrained(name, **more).save_pretrained(folder),
        "weights_size": lambda name: ModelRef.parse(name).weights_size,
        "push_as_planned": lambda folder, to, **more: hub.push(folder, plan=hub.plan_push(folder, to), **more),
    }
    function = functions.get(name) or getattr(hub, name)
    result = function(*arguments, **options)
    return {"result": vars(result) if hasattr(result, "__dict__") else result}

for line in sys.stdin:
    waits.clear()
    os.environ.clear()
    os.environ.update(variables)  # a command is a process of its own
    try:
        said = call(*json.loads(line))
    except Exception as error:
        said = {"error": type(error).__name__, "message": str(error), "hint": getattr(error, "hint", None)}
    print(json.dumps({**said, "waits": waits}, default=str), file=answers, flush=True)
"""


def environment(endpoint, home, *, token="hf_good", **more):
    """Variables of a user of that Hub."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    # On a busy machine an answer takes its time.
    variables |= {"HF_HUB_ETAG_TIMEOUT": str(LIMIT), "HF_HUB_DOWNLOAD_TIMEOUT": str(LIMIT)}
    variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return variables | ({"HF_TOKEN": token} if token else {}) | more


class HubClient:
    """`with HubClient(hub, folder) as client:` works in that folder; what it logs is in `log`."""

    def __init__(self, hub, folder, *, token="hf_good", **variables):
        self.hub = hub
        self.log = folder / "log.txt"
        self._logged = self.log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment(hub.endpoint, folder / "home", token=token, **variables),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._logged,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._process.stdout.close()
        self._logged.close()

    def __call__(self, name, *arguments, **options):
        """Call a function of hf_farms.hub, or one named above: its `result` or `error`, and the `waits` asked for."""
        arguments = [str(a) if a is not None else None for a in arguments]
        print(json.dumps([name, arguments, options]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, self.log.read_text()
        return json.loads(answer)

    def cli(self, *arguments):
        """Run the command line: `status`, `stdout`, `stderr`."""
        return self("cli", *arguments)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
