"""Plugin of pytest for an environment without the extras: `make test-base`.

A test that imports a missing package is skipped. If the library imports one, the test fails.
"""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def missing_package(error):
    """Return the package that a file of the tests lacks; None for other errors and for imports of the library."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    files = []
    traceback = error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if not name.startswith("<frozen importlib"):
            files.append(Path(name))
        traceback = traceback.tb_next
    return error.name.partition(".")[0] if files and TESTS in files[-1].parents else None


def pytest_configure():
    import hf_farms

    if Path(hf_farms.__file__).parent == TESTS.parent / "hf_farms":
        raise pytest.UsageError(f"the wheel must be tested, got the source tree {hf_farms.__file__}")


def skip(report, path, package):
    report.outcome = "skipped"
    report.longrepr = (str(path), 0, f"Skipped: {package} is not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.failed and (package := missing_package(report.call.excinfo.value.__cause__)):
        return skip(report, collector.path, package)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and (package := missing_package(call.excinfo.value)):
        return skip(report, item.path, package)
    return report
