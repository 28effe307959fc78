import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from hf_farms.errors import OutputError
from hf_farms.fingerprint import fingerprint, hash_of_file, hash_of_tokens
from hf_farms.output import OutputFolder
from hf_farms.reports import base, versions

SETTINGS = {"prune.sparsity": 0.5, "model": "m"}


def save(value, path):
    path.write_text(json.dumps(value))


def load(path):
    return json.loads(path.read_text())


def begun(folder, settings=SETTINGS, **options):
    """A folder with one stage done."""
    output = OutputFolder(folder, **options)
    output.check()
    output.begin(settings)
    output.kept("stage.json", lambda: [1], save, load)
    return output


def test_the_folder_appears_only_at_the_end(tmp_path):
    output = begun(tmp_path / "out")
    (output.partial / "file").write_text("x")
    assert not (tmp_path / "out").exists()
    assert output.finish() == tmp_path / "out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["file"]


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path):
    OutputFolder(tmp_path / "out").begin(SETTINGS)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match=r"output must be a new folder, got .*a folder that hf-farms did not write"):
        OutputFolder(tmp_path / "out").check()
    output = begun(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").exists()
    output.finish()
    assert not list((tmp_path / "out").iterdir())
    assert not list(tmp_path.glob("*.partial"))


def test_unfinished_work_of_others_is_refused(tmp_path):
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "theirs").write_text("x")
    with pytest.raises(OutputError, match="did not write what is there"):
        OutputFolder(tmp_path / "b", overwrite=True).check()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="output must be a folder, got the file"):
        OutputFolder(tmp_path / "out", overwrite=True).check()


def test_a_folder_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert OutputFolder(".").partial == tmp_path / "a" / "b.partial"
    assert OutputFolder("..").partial == tmp_path / "a.partial"
    for path in (".", "..", tmp_path / "a"):
        with pytest.raises(OutputError, match="output must not be the folder that this runs in"):
            OutputFolder(path, overwrite=True).check()
    with pytest.raises(OutputError, match="output must be a folder with a name, got '/'"):
        OutputFolder("/")


def test_the_same_settings_continue(tmp_path):
    (begun(tmp_path / "out").partial / "shard").write_text("x")
    again = begun(tmp_path / "out")
    assert (again.partial / "shard").exists()
    assert again.kept("stage.json", lambda: pytest.fail("done already"), save, load) == [1]


def test_other_settings_are_refused_with_the_difference(tmp_path):
    (begun(tmp_path / "out").partial / "shard").write_text("x")
    others = {"prune.sparsity": 0.4, "model": "m", "weights": "a" * 64}
    with pytest.raises(
        OutputError, match=r"begun otherwise \(prune.sparsity: 0.4, there 0.5; weights: 'a{12}\.\.\.', there None\)"
    ):
        OutputFolder(tmp_path / "out").begin(others)
    assert (tmp_path / "out.partial" / "shard").exists()
    begun(tmp_path / "out", others, overwrite=True)
    assert not (tmp_path / "out.partial" / "shard").exists()


def test_overwriting_continues_its_own_beginning(tmp_path):
    (begun(tmp_path / "out", overwrite=True).partial / "shard").write_text("x")
    assert (begun(tmp_path / "out", overwrite=True).partial / "shard").exists()


@pytest.mark.parametrize("moment", ["folder", "state", "stage"])
def test_a_kill_at_the_beginning_leaves_nothing_that_stops_the_next_run(tmp_path, moment):
    output = OutputFolder(tmp_path / "out")
    output.partial.mkdir()
    if moment != "folder":
        output.state.mkdir()
    if moment == "stage":
        (output.state / "fingerprint.json.tmp").write_text("{")
    assert begun(tmp_path / "out").finish() == tmp_path / "out"
    assert not list((tmp_path / "out").iterdir())


def test_a_kill_at_the_end_leaves_nothing_behind(tmp_path):
    """Between the last two steps: the folder has its name, the state is still in it, and what it replaced beside it."""
    output = begun(tmp_path / "out")
    output.partial.rename(tmp_path / "out")
    (tmp_path / "out.old.partial").mkdir()
    OutputFolder(tmp_path / "out").tidy()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_is_too_small_is_refused(tmp_path):
    output = OutputFolder(tmp_path / "out")
    free = shutil.disk_usage(tmp_path).free
    output.check_space(1000)
    with pytest.raises(OutputError, match=r"output must fit on the disk, got .* GB free for .* GB in"):
        output.check_space(2 * free)
    begun(tmp_path / "out")
    with (output.partial / "shard").open("wb") as file:
        file.truncate(10 * free)  # a hole: it has the size and takes no space
    output.check_space(2 * free)


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    output = OutputFolder(tmp_path / "out")
    with output.in_use():
        with (
            pytest.raises(OutputError, match=r"output must not be in use, got .*, which another hf-farms is writing"),
            OutputFolder(tmp_path / "out").in_use(),
        ):
            pass
        with OutputFolder(tmp_path / "other").in_use():
            pass
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").touch()
    # Freed, but finished by the other one meanwhile.
    with pytest.raises(OutputError, match="output must be a new folder"), output.in_use():
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_folder_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"output must be in a folder, got .*, which is in a file"):
        OutputFolder(tmp_path / "file" / "out").check()


def test_fingerprints_tell_weights_and_data_apart(tmp_path):
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(bytes(1000))
    other.write_bytes(bytes(999) + b"\1")
    ids = torch.arange(6)
    assert hash_of_file(one) != hash_of_file(other)
    assert hash_of_tokens([ids[None]]) == hash_of_tokens([ids[None].int()])
    assert len({hash_of_tokens(t) for t in ([ids[None]], [ids.view(2, 3)], [ids[None] + 1], [], [ids, ids])}) == 5
    found = fingerprint({"x": 1}, weights=[one], tokens={"calibration": [ids]}, device="cpu")
    assert found["weights.a.safetensors"] == hash_of_file(one)
    assert found["versions.torch"] == torch.__version__.partition("+")[0]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("build", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_any_build_of_a_release_goes_on_with_the_work_of_another(tmp_path, monkeypatch, build):
    output = OutputFolder(tmp_path / "out")
    begun = {"versions.torch": "2.13.0", "versions.transformers": versions()["transformers"]}
    output.begin(begun)
    output.kept("stage", lambda: "done", lambda result, path: path.write_text(result), Path.read_text)
    monkeypatch.setattr(base, "version", lambda name: build if name == "torch" else version(name))
    found = fingerprint({}, weights=[], tokens={}, device="cpu")
    output.begin({name: found[name] for name in begun})
    assert (output.state / "stage").exists()
    with pytest.raises(OutputError, match=r"versions\.torch: '2\.14\.0', there '2\.13\.0'"):
        output.begin(begun | {"versions.torch": "2.14.0"})


def test_files_of_the_hub_cache_are_not_read_again(tmp_path):
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes(b"x")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert hash_of_file(tmp_path / "model.safetensors") == "ab" * 32
