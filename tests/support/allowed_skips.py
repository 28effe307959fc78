"""Plugin of pytest for `make test`, which installs every package that tests use: a skip for any other reason fails it.

A test may be skipped for what a machine lacks, such as a GPU; not for a package, since then nobody runs it.
"""

import re

import pytest

# Reasons as `-rs` prints them.
ALLOWED = re.compile(
    r"CUDA device|GPU of its own|needs a GPU|where there is a GPU"
    # Other systems, and containers.
    r"|needs (fork|bash|openssl|pipes and links|a device that takes nothing)|reads RssAnon|mount"
    # Releases of a package.
    r"|transformers has no|torch has no|another version of PEFT|of this torch"
)
FOUND = pytest.StashKey[set]()


def pytest_configure(config):
    config.stash[FOUND] = set()


def unexpected(report):
    """Return the reason of a skip that is not allowed; None for everything else."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return None if ALLOWED.search(reason) else reason.removeprefix("Skipped: ")


class Watch:
    """Collect the reasons; with several workers, the reports of all of them arrive in the main process."""

    def __init__(self, found):
        self.found = found

    def pytest_runtest_logreport(self, report):
        if reason := unexpected(report):
            self.found.add(f"{report.nodeid}: {reason}")

    def pytest_collectreport(self, report):
        self.pytest_runtest_logreport(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    session.config.pluginmanager.register(Watch(session.config.stash[FOUND]))


def pytest_terminal_summary(terminalreporter, config):
    for line in sorted(config.stash[FOUND]):
        terminalreporter.write_line(f"NOT ALLOWED TO BE SKIPPED {line}", red=True)


def pytest_sessionfinish(session, exitstatus):
    if session.config.stash[FOUND] and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
