"""The console script, and `python -m hf_farms_cli` for launchers that start modules."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from hf_farms_cli.interrupts import interrupts

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C at any moment is one line and status 130."""
    status: object = 130
    interrupts.watch()
    try:
        from hf_farms_cli.app import main as run
        from hf_farms_cli.lost import PrintError, close_streams, printing, say_lost

        # Help and versions are printed outside of all commands; of those, only --debug lets an error through.
        with printing() if "--debug" not in sys.argv else nullcontext():
            run()
    except KeyboardInterrupt:
        interrupts.received = True
    except SystemExit as end:
        status = end.code
        if not interrupts.received:
            if not close_streams() and not status:
                raise SystemExit(1) from None
            raise
    except PrintError as error:
        say_lost(error)
        raise SystemExit(1) from None
    finally:
        interrupts.forget_handler()
    if interrupts.received:
        if not interrupts.reported:  # commands have their own answer; this is before and after them
            print("Interrupted.", file=sys.stderr)  # noqa: T201
        raise SystemExit(status)


if __name__ == "__main__":
    main()
