import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from hf_farms.errors import OutputError
from hf_farms.output.existing_results import RECIPE_NAME, remove_leftovers
from hf_farms.output.fingerprint import fingerprint, hash_of_file, hash_of_tokens
from hf_farms.output.folder import OutputFolder
from hf_farms.reports import REPORT_NAME, base, versions

SHARD = "model-00001-of-00003.safetensors"
SETTINGS = {"prune.sparsity": 0.5, "model": "m"}


def save(value, path):
    path.write_text(json.dumps(value))


def load(path):
    return json.loads(path.read_text())


def begun(folder, settings=SETTINGS, **options):
    """A folder with one stage done."""
    output = OutputFolder(folder, **options)
    output.check()
    output.resume_or_start(settings)
    output.load_or_compute("stage.json", lambda: [1], save, load)
    return output


def test_the_folder_appears_only_at_the_end(tmp_path):
    output = begun(tmp_path / "out")
    (output.partial / "file").write_text("x")
    assert not (tmp_path / "out").exists()
    assert output.finish() == tmp_path / "out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["file"]


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path):
    OutputFolder(tmp_path / "out").resume_or_start(SETTINGS)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match=r"output must be a new folder, got .*a folder that hf-farms did not write"):
        OutputFolder(tmp_path / "out").check()
    with pytest.raises(OutputError, match=r"a new folder or an earlier result, got .*that hf-farms did not write"):
        OutputFolder(tmp_path / "out", overwrite=True).check()
    assert (tmp_path / "out" / "thesis.txt").exists()


def a_result(folder, **report):
    """What `prune` leaves, as far as its names count."""
    (folder / "figures").mkdir(parents=True)
    report = {"schema_version": 1, "sparsity": 0.5, "blocks": [{}, {}]} | report
    (folder / REPORT_NAME).write_text(json.dumps(report))
    (folder / "README.md").write_text("---\ntags:\n- hf-farms\n---\n")
    shards = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for name in (*shards, RECIPE_NAME, "config.json", "tokenizer.json", "LICENSE.txt", "figures/blocks.png"):
        (folder / name).write_text("x")
    return folder


def test_an_earlier_result_is_replaced_when_told_so(tmp_path):
    a_result(tmp_path / "out")
    with pytest.raises(OutputError, match=r"which is an earlier result\.") as raised:
        OutputFolder(tmp_path / "out").check()
    assert raised.value.hint.endswith("replace it with `overwrite=True`.")
    output = begun(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / REPORT_NAME).exists()
    output.finish()
    assert not list((tmp_path / "out").iterdir())
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("names", [["model.safetensors"], ["model-00001-of-00002.safetensors", "index"]])
def test_a_result_with_merged_shards_is_replaced(names, tmp_path):
    folder = a_result(tmp_path / "out")
    for shard in folder.glob("model-*"):
        shard.unlink()
    (folder / names[0]).write_text("x")
    if "index" in names:
        content = {"weight_map": {"a": names[0], "b": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    OutputFolder(folder, overwrite=True).check()
    (folder / "model-00001-of-00009.safetensors").write_text("x")
    with pytest.raises(OutputError, match=r"did not write \(model"):
        OutputFolder(folder, overwrite=True).check()


@pytest.mark.parametrize(
    "added",
    [
        *("thesis.txt", "model.safetensors", "model-00001-of-00002.safetensors", "checkpoint-5/optimizer.pt"),
        *("figures/mine.png", ".git/HEAD", "adapter_model.safetensors", "results.json"),
    ],
)
def test_what_was_put_into_a_result_is_never_replaced(added, tmp_path):
    mine = a_result(tmp_path / "out") / added
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("x")
    with pytest.raises(OutputError, match="an earlier result with files that hf-farms did not write"):
        OutputFolder(tmp_path / "out", overwrite=True).check()
    with pytest.raises(OutputError, match="an earlier result with files that hf-farms did not write"):
        begun_without_a_look(tmp_path / "out").finish()
    assert mine.read_text() == "x"


def begun_without_a_look(folder):
    output = OutputFolder(folder, overwrite=True)
    output.resume_or_start(SETTINGS)
    output.load_or_compute("stage.json", lambda: [1], save, load)
    return output


def test_a_card_of_the_users_own_is_never_replaced(tmp_path):
    (a_result(tmp_path / "out") / "README.md").write_text("# Mine")
    with pytest.raises(OutputError, match=r"did not write \(README.md\)"):
        OutputFolder(tmp_path / "out", overwrite=True).check()


@pytest.mark.parametrize("report", [{"kind": "training"}, {"sparsity": None, "kind": "evaluation"}])
def test_the_output_of_a_training_is_no_result(report, tmp_path):
    a_result(tmp_path / "out", **report)
    with pytest.raises(OutputError, match="a folder that hf-farms did not write"):
        OutputFolder(tmp_path / "out", overwrite=True).check()
    (tmp_path / "out" / RECIPE_NAME).unlink()
    with pytest.raises(OutputError, match="a folder that hf-farms did not write"):
        OutputFolder(tmp_path / "out", overwrite=True).check()


def test_what_appears_during_the_work_is_not_replaced_at_its_end(tmp_path):
    output = begun(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("x")
    with pytest.raises(OutputError, match="a folder that hf-farms did not write"):
        output.finish()
    assert (tmp_path / "out" / "theirs").exists()
    assert output.partial.exists()


def test_unfinished_work_of_others_is_refused(tmp_path):
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "theirs").write_text("x")
    with pytest.raises(OutputError, match="has content that hf-farms did not write"):
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
        with pytest.raises(OutputError, match="output must not be the working folder"):
            OutputFolder(path, overwrite=True).check()
    with pytest.raises(OutputError, match="output must be a folder with a name, got '/'"):
        OutputFolder("/")


def test_the_same_settings_continue(tmp_path):
    (begun(tmp_path / "out").partial / "shard").write_text("x")
    again = begun(tmp_path / "out")
    assert (again.partial / "shard").exists()
    assert again.load_or_compute("stage.json", lambda: pytest.fail("done already"), save, load) == [1]


@pytest.mark.parametrize(("before", "after"), [(5, 60), (5, None), (None, 5)])
def test_another_time_limit_continues(before, after, tmp_path):
    (begun(tmp_path / "out", SETTINGS | {"prune.minutes": before}).partial / "shard").write_text("x")
    again = begun(tmp_path / "out", SETTINGS | {"prune.minutes": after})
    assert (again.partial / "shard").exists()
    with pytest.raises(OutputError, match=r"begun otherwise \(model: 'n', previously 'm'\)"):
        OutputFolder(tmp_path / "out").resume_or_start({**SETTINGS, "prune.minutes": before, "model": "n"})


def test_other_settings_are_refused_with_the_difference(tmp_path):
    (begun(tmp_path / "out").partial / "shard").write_text("x")
    others = {"prune.sparsity": 0.4, "model": "m", "weights": "a" * 64}
    with pytest.raises(
        OutputError,
        match=r"begun otherwise \(prune.sparsity: 0.4, previously 0.5; weights: 'a{12}\.\.\.', previously None\)",
    ):
        OutputFolder(tmp_path / "out").resume_or_start(others)
    assert (tmp_path / "out.partial" / "shard").exists()
    with pytest.raises(OutputError, match=r"has content that hf-farms did not write \(shard\)"):
        begun(tmp_path / "out", others, overwrite=True)
    (tmp_path / "out.partial" / "shard").rename(tmp_path / "out.partial" / SHARD)
    begun(tmp_path / "out", others, overwrite=True)
    assert not (tmp_path / "out.partial" / SHARD).exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '"x"'])
def test_a_damaged_fingerprint_is_the_beginning_of_nothing(damage, tmp_path):
    output = begun(tmp_path / "out")
    (output.partial / SHARD).write_text("x")
    (output.state / "fingerprint.json").write_text(damage)
    assert not (begun(tmp_path / "out").partial / SHARD).exists()


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
    """Between the last two steps: the folder has its name, and in it are still the state and what it replaced."""
    output = begun(tmp_path / "out")
    (output.state / "replaced-1").mkdir()
    output.partial.rename(tmp_path / "out")
    (tmp_path / "out.old.partial").mkdir()
    (tmp_path / "out.old.partial" / "theirs").touch()
    remove_leftovers(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.old.partial"]
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
    with output.locked():
        with (
            pytest.raises(OutputError, match=r"output must not be in use, got .*, which another hf-farms is writing"),
            OutputFolder(tmp_path / "out").locked(),
        ):
            pass
        with OutputFolder(tmp_path / "other").locked():
            pass
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").touch()
    # Freed, but finished by the other one meanwhile.
    with pytest.raises(OutputError, match="output must be a new folder"), output.locked():
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
    found = fingerprint(weights=[one], tokens={"calibration": [ids]}, device="cpu")
    assert found["weights.a.safetensors"] == hash_of_file(one)
    assert found["versions.torch"] == torch.__version__.partition("+")[0]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("build", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_any_build_of_a_release_goes_on_with_the_work_of_another(tmp_path, monkeypatch, build):
    output = OutputFolder(tmp_path / "out")
    begun = {"versions.torch": "2.13.0", "versions.transformers": versions()["transformers"]}
    output.resume_or_start(begun)
    output.load_or_compute("stage", lambda: "done", lambda result, path: path.write_text(result), Path.read_text)
    monkeypatch.setattr(base, "version", lambda name: build if name == "torch" else version(name))
    found = fingerprint(weights=[], tokens={}, device="cpu")
    output.resume_or_start({name: found[name] for name in begun})
    assert (output.state / "stage").exists()
    with pytest.raises(OutputError, match=r"versions\.torch: '2\.14\.0', previously '2\.13\.0'"):
        output.resume_or_start(begun | {"versions.torch": "2.14.0"})


def test_work_that_was_begun_with_the_name_of_the_build_is_continued(tmp_path):
    output = OutputFolder(tmp_path / "out")
    output.resume_or_start({"versions.torch": "2.13.0+cpu", "model": "a+b"})
    output.load_or_compute("stage", lambda: "done", lambda result, path: path.write_text(result), Path.read_text)
    output.resume_or_start({"versions.torch": "2.13.0", "model": "a+b"})
    assert (output.state / "stage").exists()
    with pytest.raises(OutputError, match=r"model: 'a', previously 'a\+b'"):
        output.resume_or_start({"versions.torch": "2.13.0", "model": "a"})


def test_files_of_the_hub_cache_are_not_read_again(tmp_path):
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes(b"x")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert hash_of_file(tmp_path / "model.safetensors") == "ab" * 32


def test_a_place_that_cannot_be_written_is_refused_with_advice(tmp_path, monkeypatch):
    # Tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="output must be in a writable folder, got ") as refused:
        OutputFolder(tmp_path / "new").check()
    assert refused.value.hint == "Choose another `output`."
