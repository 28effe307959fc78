"""The plugin of `make test-base`: tests may lack a package, the library may not."""

import pytest
from base_only import TESTS, missing_package

HERE = str(TESTS / "test_something.py")
LIBRARY = str(TESTS.parent / "hf_farms" / "something.py")


def error_of(code, filename, **values):
    with pytest.raises(ImportError, match=r"No module named|cannot import name|no name") as caught:
        exec(compile(code, filename, "exec"), values)
    return caught.value


def test_an_import_of_a_test_is_skipped():
    assert missing_package(error_of("import not_installed.part", HERE)) == "not_installed"


def test_an_import_of_the_library_fails_the_test():
    def load():
        exec(compile("import not_installed", LIBRARY, "exec"), {})

    assert missing_package(error_of("load()", HERE, load=load)) is None


@pytest.mark.parametrize("code", ["from os import nothing", "raise ModuleNotFoundError('no name')"])
def test_other_errors_of_imports_fail_the_test(code):
    assert missing_package(error_of(code, HERE)) is None


def test_no_error_is_no_missing_package():
    assert missing_package(None) is None
