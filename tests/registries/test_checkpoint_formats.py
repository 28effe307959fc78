"""A format of checkpoints that is one file and one entry is read by every command. No command has an option for it."""

import pytest

from hf_farms import PruneReport, SpectralReport
from hf_farms.demo import demo_model
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.files import weight_files
from hf_farms.loading.opening import load_model, open_model
from hf_farms.registries import CHECKPOINT_FORMATS, FormatEntry

TOY = FormatEntry(
    needs="nothing",
    function="registry_entries:find_toy",
    files=("weights.toy",),
    converted=True,
    sentence="{name!r} is a toy: {replaced_by}.",
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.toy").write_text(str(demo_model()))
    return tmp_path / "model"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(CHECKPOINT_FORMATS, "toy", TOY)


def test_models_are_opened_and_loaded_with_a_note(toy, folder):
    note = f"'{folder}' is a toy: its twin was loaded."
    with pytest.warns(HfFarmsWarning, match="is a toy: its twin was loaded"):
        reader = open_model(folder)
    assert len(reader) == 8
    with pytest.warns(HfFarmsWarning, match="is a toy"):
        assert load_model(str(folder)).notes == (note,)


@pytest.mark.filterwarnings("default")  # the command decides which warnings are shown
def test_the_command_line_analyzes_plans_prunes_and_describes_it(toy, folder, hf_farms, tmp_path):
    hf_farms("analyze", folder, "-o", tmp_path / "report.json")
    assert len(SpectralReport.load(tmp_path / "report.json").blocks) == 8
    out = tmp_path / "out"
    options = ("prune", folder, "--method", "magnitude", "--allocation", "uniform", "--evaluation", "none", "-o", out)
    assert f"model: {folder}" in hf_farms(*options, "--dry-run")
    hf_farms(*options)
    assert any(
        "is a toy: its twin was loaded." in note for note in PruneReport.load(out / "hf_farms_report.json").notes
    )
    assert "is a toy: its twin was loaded." in (out / "README.md").read_text()


def test_a_format_that_transformers_reads_is_found_by_its_name(monkeypatch, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"^model must have weights \(model\.safetensors, or shards with an index\)"):
        weight_files("w", str(tmp_path), None, allow_pickle=False)
    entry = {"needs": "nothing", "function": "registry_entries:find_other_name", "files": ("other.*",), "sentence": ""}
    monkeypatch.setitem(CHECKPOINT_FORMATS, "other", FormatEntry(**entry))
    assert weight_files("w", str(tmp_path), None, allow_pickle=False) == [tmp_path / "other.safetensors"]
    monkeypatch.setitem(CHECKPOINT_FORMATS, "other", FormatEntry(**entry, pickled=True))
    with pytest.raises(ModelError, match="weights must be safetensors, got pickled ones in 'w'"):
        weight_files("w", str(tmp_path), None, allow_pickle=False)


def test_a_format_that_is_gone_is_refused(remove, folder, tmp_path):
    with pytest.raises(ModelError, match=r"model folder must have a config\.json, got .* without"):
        open_model(folder)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    remove(CHECKPOINT_FORMATS, "pickle")
    with pytest.raises(ModelError, match="model must have weights"):
        weight_files("w", str(tmp_path), None, allow_pickle=True)


def test_an_entry_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="files must be patterns of file names"):
        FormatEntry(needs="nothing", function="m:f", files=(), sentence="")
    with pytest.raises(ValueError, match="needs must be 'nothing' for a format"):
        FormatEntry(needs="windows", function="m:f", files=("*",), sentence="")
