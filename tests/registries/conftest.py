import importlib
import sys

import pytest
from typer.testing import CliRunner

COMMANDS = ("hf_farms_cli.app", "hf_farms_cli.prune", "hf_farms_cli.analyze")


@pytest.fixture
def hf_farms(monkeypatch):
    """Run a command line that was imported after the entries of the test were added: output, or the error's."""
    package = importlib.import_module("hf_farms_cli")
    for name in COMMANDS:
        importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(package, name.rpartition(".")[2], None)
    app = None

    def run(*arguments, status=0):
        nonlocal app
        app = app or importlib.import_module("hf_farms_cli.app").app
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output + result.stderr
        return " ".join((result.output + result.stderr).split())

    return run


@pytest.fixture
def remove():
    """Remove an entry from a registry for one test; `monkeypatch` would put it back behind all others."""
    before = []

    def removed(registry, name):
        before.append((registry, dict(registry)))
        del registry[name]

    yield removed
    for registry, entries in reversed(before):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def completions(monkeypatch):
    """What the shell is offered for an option: call it with the module of a command, and the option."""

    def of(command, option):
        import typer
        from hf_farms_cli import analyze, prune
        from typer.main import get_command

        app = typer.Typer()
        app.command()({"prune": prune.prune_command, "analyze": analyze.analyze_command}[command])
        parameter = next(found for found in get_command(app).params if found.name == option)
        return [item.value for item in parameter.shell_complete(None, "")]

    return of
