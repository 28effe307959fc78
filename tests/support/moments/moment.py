"""A process sends itself a signal at a moment of its work.

A moment is an event inside the process, so that it is the same one however busy the machine is. See `at` in
processes.py.
"""

import fnmatch
import os
import sys

# What changes the file system, with the path as first argument. Rust writes files that nobody hears of; each of them
# is renamed or read afterwards.
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir")


class Moment:
    """What `at` in processes.py describes.

    Attributes:
        changes: how many there were.
    """

    def __init__(self, signal=0, imports=None, change=None, half=False, made=None, number=1):
        self.signal, self.imports, self.change, self.half, self.made = signal, imports, change, half, made
        self.changes, self._left, self._folder = 0, number, os.getcwd()
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if self.made is not None and self._left == 0:
            self._send()
        elif event == "import":
            if self.imports is not None and arguments[0] == self.imports:
                self._send()
        elif event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self._hear_change(event, arguments)

    def _hear_change(self, event, arguments):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if not os.path.abspath(path).startswith(self._folder + os.sep):
            return
        self.changes += 1
        if self.change is not None and self.changes >= self.change and not (self.half and event != "os.rename"):
            if self.half and os.path.isfile(path):  # as if it were still being written
                os.truncate(path, os.path.getsize(path) // 2)
            self._send()
        if self.made is not None and event == "os.rename" and fnmatch.fnmatch(os.fsdecode(arguments[1]), self.made):
            self._left -= 1

    def _send(self):
        signal, self.signal = self.signal, 0
        if signal:
            os.kill(os.getpid(), signal)
