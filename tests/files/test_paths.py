"""Names of folders that are given as `.`, `..` or `~`."""

import os

import pytest

from hf_farms.files.paths import folder_name, with_name


@pytest.mark.parametrize(
    ("given", "name"), [(".", "sub"), ("./", "sub"), ("..", "top"), ("../", "top"), ("../sub/.", "sub"), ("~", "sub")]
)
def test_a_folder_that_is_given_by_its_place_has_its_own_name(given, name, tmp_path, monkeypatch):
    (tmp_path / "top" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "top" / "sub")
    monkeypatch.setenv("HOME", str(tmp_path / "top" / "sub"))
    assert folder_name(given) == name
    assert os.path.samefile(with_name(given), os.path.expanduser(given))


@pytest.mark.parametrize("given", ["demo", "me/model", "./models/mine/", "../other"])
def test_other_names_stay_as_they_are(given):
    assert with_name(given) == given
