"""Atomic writes: a file is complete or absent, and no temporary file is left."""

import os

import pytest

from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import replacing, write_text


def test_a_file_is_complete_or_absent_and_nothing_is_left(tmp_path):
    write_text(tmp_path / "x", "old")
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"), replacing(tmp_path / "x") as unfinished:  # noqa: PT012
        unfinished.write_text("half")
        raise KeyboardInterrupt("as Ctrl-C does")
    assert (tmp_path / "x").read_text() == "old"
    # What appears meanwhile is not replaced either.
    with pytest.raises(OutputError, match="got the pipe"), replacing(tmp_path / "y") as unfinished:  # noqa: PT012
        unfinished.write_text("whole")
        os.mkfifo(tmp_path / "y")
    # Nor are files that have the names of other programs' unfinished work.
    (tmp_path / "x.tmp").write_text("mine")
    write_text(tmp_path / "x", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.tmp", "y"}
    assert (tmp_path / "x.tmp").read_text() == "mine"
