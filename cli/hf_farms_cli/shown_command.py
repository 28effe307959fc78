"""The command line for the report and the card, without secrets."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hf_farms.privacy.publishing import published_argument

__all__ = ["shown_command"]


def shown_command(argv: Sequence[str]) -> str:
    """Return a command line that is safe to publish: quoted, without the token, secrets and private paths.

    Args:
        argv: as of `sys.argv`.
    """
    arguments: list[str] = []
    secret = False
    for argument in argv[1:]:
        if not secret and not argument.startswith("--token="):
            arguments.append(published_argument(argument))
        secret = argument == "--token"
        if secret:
            arguments.pop()
    return shlex.join(["hf-farms", *arguments])
