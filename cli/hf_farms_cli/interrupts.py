"""Record of Ctrl-C, because libraries replace or drop the exception while they are being imported."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["Interrupts", "interrupts"]


class Interrupts:
    """State of Ctrl-C in this process.

    Attributes:
        received: whether Ctrl-C was pressed.
        reported: whether the message was printed.
    """

    def __init__(self) -> None:
        self.received = self.reported = False

    def watch(self) -> None:
        """Record Ctrl-C from now on; it raises KeyboardInterrupt as before."""
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.default_int_handler(number, frame)

    def check(self) -> None:
        """Raise a KeyboardInterrupt that was dropped."""
        if self.received and not self.reported:
            raise KeyboardInterrupt

    def forget_handler(self) -> None:
        """Restore the default handler, so that another Ctrl-C ends the exit of Python without a traceback."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Where Ctrl-C ended an exec of text (as dataclasses do), Python ends by the signal whatever the status, until
        # another text was executed.
        exec("")


interrupts = Interrupts()
