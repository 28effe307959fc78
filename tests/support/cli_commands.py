"""The commands of hf-farms by their path, such as "prune" and "adapter merge"."""

import typer
from hf_farms_cli.app import app


def _leaves(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(_leaves(typer.main.get_command(app)))
