"""The command line for the report and the card, without secrets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hf_farms.privacy.publishing import published_argument

__all__ = ["shown_command"]

# They change what is printed, or what may be replaced, and not the result.
FLAGS = frozenset({"--quiet", "--json", "--debug", "--yes", "--overwrite"})
# Short ones may stand together, before a last option with its value: -qo DIR.
SHORT_FLAGS = re.compile("^-[qy]+")
# The same with a value; a token is secret besides.
OPTIONS = ("--token", "--format")


def shown_command(argv: Sequence[str]) -> str:
    """Return a command line that is safe to publish: quoted, without the token, secrets and private paths.

    Options that do not change the result are left out.

    Args:
        argv: as of `sys.argv`.
    """
    arguments: list[str] = []
    left_out = False
    for argument in argv[1:]:
        is_value = left_out
        left_out = argument in OPTIONS and not is_value
        joined = argument.startswith(tuple(f"{option}=" for option in OPTIONS))
        if not (is_value or left_out or joined or argument in FLAGS or SHORT_FLAGS.fullmatch(argument)):
            arguments.append(published_argument(SHORT_FLAGS.sub("-", argument, count=1)))
    return shlex.join(["hf-farms", *arguments])
