"""Output paths that are refused, also through links. Special files are pipes and sockets: none of these is a device."""

import os
import socket

import pytest

from hf_farms.demo import DEMO_FOLDERS
from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import replacing
from hf_farms.files.path_checks import check_file, check_within
from hf_farms.output.allowed_paths import check_apart
from hf_farms.output.folder import OutputFolder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "weights").write_text("w")
    (folder / "model.safetensors").symlink_to(tmp_path / "disk" / "weights")
    (tmp_path / "link").symlink_to(folder)
    return folder


def special(kind, path):
    """Something that is no regular file; a socket must stay open."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        opened = socket.socket(socket.AF_UNIX)
        opened.bind(str(path))
        opened.close()
    elif kind == "link to nothing":
        path.symlink_to(path.with_name("nothing"))
    else:
        (path.with_name("target")).write_text("x")
        target = path.with_name("target")
        if kind == "link to a pipe":
            target.unlink()
            os.mkfifo(target)
        path.symlink_to(target)
    return path.lstat()


KINDS = ["pipe", "socket", "link to nothing", "link to a pipe", "link to a file"]


@pytest.mark.parametrize("kind", KINDS)
def test_special_files_and_links_stay_what_they_are(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = tmp_path / "x"
    before = special(kind, path.relative_to(tmp_path))
    there = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"output must be a regular file or not exist, got the \w+ "):
        check_file(path)
    with pytest.raises(OutputError, match=r"path must be a regular file or not exist"), replacing(path):
        pass
    with pytest.raises(OutputError, match=r"output must be a folder, got the \w+ "):
        OutputFolder(path, overwrite=True).check()
    path.rename(tmp_path / "y.partial")
    with pytest.raises(OutputError, match=r"output must be a folder, got the \w+ .*y.partial"):
        OutputFolder(tmp_path / "y", overwrite=True).check()
    (tmp_path / "y.partial").rename(path)
    assert path.lstat().st_ino == before.st_ino
    assert sorted(tmp_path.iterdir()) == there


def test_links_inside_a_folder_are_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"folder must hold no link where hf-farms writes, got .*figures"):
        check_within(tmp_path / "f", ["figures/blocks.png"])


@pytest.mark.parametrize(
    ("place", "relation"),
    [
        ("dense", "be the model"),
        ("dense/sub", "be inside the model"),
        ("dense/../dense", "be the model"),
        (".", "contain the model"),
        ("disk", "contain a file of the model"),
        ("link/sub", "be inside the model"),
    ],
)
@pytest.mark.parametrize("name", ["dense", "link"])
def test_no_result_goes_where_the_model_is(name, place, relation, model, tmp_path):
    with pytest.raises(OutputError, match=f"output must not {relation}"):
        OutputFolder(tmp_path / place, overwrite=True, reads={"the model": tmp_path / name}).check()


def test_no_file_is_written_over_what_is_read(model, tmp_path):
    for path in (tmp_path / "disk" / "weights", model / "report.json", tmp_path / "link" / "config.json"):
        with pytest.raises(OutputError, match="output must not"):
            check_apart(path, {"the model": model})
    check_apart(tmp_path / "report.json", {"the model": model, "the text": None, "the dense model": "me/hub-id"})
    with pytest.raises(OutputError, match="output must not be the text"):
        check_apart(tmp_path / "disk" / "weights", {"the text": tmp_path / "disk" / "weights"})
    for name, folder in DEMO_FOLDERS.items():
        with pytest.raises(OutputError, match="output must not be inside the model"):
            check_apart(folder / "report.json", {"the model": name})


def test_the_cache_of_the_hub_is_left_alone(tmp_path):
    entry = tmp_path / "models--me--x"
    (entry / "snapshots" / "abc").mkdir(parents=True)
    for path in (entry / "blobs", entry / "snapshots" / "abc" / "out"):
        with pytest.raises(OutputError, match="output must not be in the Hub's cache"):
            OutputFolder(path, overwrite=True).check()
        with pytest.raises(OutputError, match="output must not be in the Hub's cache"):
            check_file(path)


def test_home_and_unfinished_work_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    for path in (tmp_path / "home", tmp_path / "home" / "me"):
        with pytest.raises(OutputError, match="output must not be your home folder"):
            OutputFolder(path, overwrite=True).check()
    (tmp_path / "a.partial" / ".hf-farms-unfinished").mkdir(parents=True)
    with pytest.raises(OutputError, match="output must not be in unfinished work"):
        OutputFolder(tmp_path / "a.partial" / "out").check()
    with pytest.raises(OutputError, match=r"output must not end in \.partial"):
        OutputFolder(tmp_path / "a.partial", overwrite=True).check()


def test_names_that_are_too_long_are_refused_before_there_is_anything(tmp_path):
    check_file(tmp_path / ("n" * 255))
    with replacing(tmp_path / ("n" * 255)) as unfinished:
        unfinished.touch()
    OutputFolder(tmp_path / ("n" * 247)).check()
    for path in (tmp_path / ("n" * 248), tmp_path / ("é" * 124), tmp_path / ("n" * 256) / "out"):
        with pytest.raises(OutputError, match=r"output must have names of at most \d+ bytes, got \d+ in"):
            OutputFolder(path).check()
    with pytest.raises(OutputError, match="output must be a path of at most"):
        check_file(tmp_path / "/".join(["deep"] * 1000))
