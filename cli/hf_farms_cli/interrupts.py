"""Ctrl-C, remembered: libraries turn the exception into another one, or drop it, while they are being imported."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["Interrupts", "interrupts"]


class Interrupts:
    """What happened to this process.

    Attributes:
        asked: Ctrl-C was pressed.
        said: the user was told so.
    """

    def __init__(self) -> None:
        self.asked = self.said = False

    def watch(self) -> None:
        """Notice Ctrl-C from now on; it raises KeyboardInterrupt as before."""
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.default_int_handler(number, frame)

    def check(self) -> None:
        """Raise a KeyboardInterrupt that was dropped."""
        if self.asked and not self.said:
            raise KeyboardInterrupt

    def forget_handler(self) -> None:
        """What still runs at the exit of Python is ended by another Ctrl-C, without a traceback."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Where Ctrl-C ended an exec of text (as dataclasses do), Python ends by the signal whatever the status, until
        # another text was executed.
        exec("")


interrupts = Interrupts()
