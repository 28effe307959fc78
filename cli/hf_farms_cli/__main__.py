"""The console script, and `python -m hf_farms_cli` for launchers that start modules."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; an interrupt at any moment is one line."""
    try:
        from hf_farms_cli.app import main as run

        run()
    except KeyboardInterrupt:  # commands have their own answer; this is before and after them
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    finally:
        # What still runs at the exit of Python is ended by a second Ctrl-C without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
