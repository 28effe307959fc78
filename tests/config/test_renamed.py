"""Renamed: `farms` is `spectra`, `skip_ends` is `ends`, `normalise` is `normalize`; old names work as they did."""

import copy
import dataclasses
import inspect
import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest

from hf_farms import FarmsLRCallback, S2FTCallback
from hf_farms.config import (
    CalibrationConfig,
    EvaluationConfig,
    FarmsConfig,
    FarmsLRConfig,
    PruneConfig,
    S2FTConfig,
)
from hf_farms.config.renamed import absent_before, absent_values, current_name, renamed
from hf_farms.errors import DataError, OutputError
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import Document, DocumentError
from hf_farms.output.folder import OutputFolder
from hf_farms.output.recipe import Recipe
from hf_farms.reports import SCHEMA_VERSION, PruneReport, TrainReport
from hf_farms.reports.folders import load_report, training_report
from hf_farms.s2ft.saving import load_selection

CONFIGS = [PruneConfig, FarmsLRConfig, S2FTConfig]
SMALL = FarmsConfig(window_rows=8)
# Files of schema 1 have all old names.
SKIPS_ENDS = pytest.mark.filterwarnings(
    "ignore:FarmsLRConfig.skip_ends is named ends now:DeprecationWarning",
    "ignore:FarmsLRConfig.normalise is named normalize now:DeprecationWarning",
)
EARLIER = Path(__file__).parents[1] / "golden" / "schema_1"


def old_name(kind):
    return pytest.warns(
        DeprecationWarning, match=rf"^{kind.__name__}.farms is named spectra now. Replace farms by spectra;"
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_old_name_is_an_argument_and_an_attribute(kind):
    with old_name(kind) as warned:
        config = kind(farms=SMALL)
    assert [warning.filename for warning in warned] == [__file__]
    assert config == kind(spectra=SMALL)
    assert hash(config) == hash(kind(spectra=SMALL))
    assert repr(config) == repr(kind(spectra=SMALL))
    with old_name(kind) as warned:
        assert config.farms is config.spectra is SMALL
    assert [warning.filename for warning in warned] == [__file__]
    assert "farms" not in inspect.signature(kind).parameters
    with pytest.raises(TypeError, match="unexpected keyword argument 'farm'"):
        kind(farm=SMALL)


@pytest.mark.parametrize("kind", CONFIGS)
def test_both_names_at_once_are_refused(kind):
    one = r"farms must be left out with spectra, its new name, got both. Remove farms\."
    for options in ({"farms": SMALL, "spectra": SMALL}, {"spectra": SMALL, "farms": FarmsConfig()}):
        with pytest.raises(ValueError, match=one):
            kind(**options)
        with pytest.raises(ValueError, match=one):
            dataclasses.replace(kind(), **options)
    both = {"farms": {}, "spectra": {}}
    with pytest.raises(DocumentError, match=r"farms must be left out with spectra"):
        parse_dataclass(Document(both), kind)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_is_replaced_and_copied_by_either_name(kind):
    with old_name(kind) as warned:
        config = dataclasses.replace(kind(), farms=SMALL)
    assert [warning.filename for warning in warned] == [__file__]
    assert config == dataclasses.replace(kind(), spectra=SMALL) == kind(spectra=SMALL)
    for same in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same == config
    assert dataclasses.asdict(config)["spectra"]["window_rows"] == 8
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'spectra'"):
        config.spectra = SMALL


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_object_pickled_by_an_earlier_version_has_the_new_name(kind):
    state = dict(vars(kind()))
    state["farms"] = state.pop("spectra")
    config = object.__new__(kind)
    config.__setstate__(state)
    assert config == kind()


def test_the_old_name_is_a_key_of_a_mapping():
    options = {"budget_allocation": "farms"}
    for callback, kind, more in ((FarmsLRCallback, FarmsLRConfig, {}), (S2FTCallback, S2FTConfig, options)):
        for value in (SMALL, {"window_rows": 8}):
            with old_name(kind):
                config = callback({"farms": value, **more}).config
            assert config == callback({"spectra": value, **more}).config == kind(spectra=SMALL, **more)
        with pytest.raises(ValueError, match="farms must be left out with spectra"):
            callback({"farms": SMALL, "spectra": SMALL})


@SKIPS_ENDS
def test_reports_of_schema_1_are_read_and_written_as_today():
    for kind in (PruneReport, TrainReport):
        path = EARLIER / f"{kind.__name__.removesuffix('Report').lower()}_report.json"
        with pytest.warns(DeprecationWarning, match="farms is named spectra now"):
            report = kind.load(path)
        written = json.loads(report.to_json())
        assert written["schema_version"] == report.schema_version == SCHEMA_VERSION
        assert '"farms":' not in report.to_json()
        assert kind.from_json(report.to_json()) == report
    assert report.farms_lr.config == FarmsLRConfig(interval=0.1, spectra=SMALL, ends="measured")
    assert report.s2ft.config == S2FTConfig(spectra=FarmsConfig(fit="peak"), max_channels=None)


def test_an_old_report_with_both_names_is_refused(tmp_path):
    data = json.loads((EARLIER / "prune_report.json").read_text())
    data["config"]["spectra"] = {}
    (tmp_path / "hf_farms_report.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"\(farms must be left out with spectra, its new name, got both"):
        load_report(tmp_path)


def test_a_recipe_with_the_old_key_is_read(tmp_path):
    with old_name(PruneConfig):
        recipe = Recipe.load(EARLIER / "recipe.yaml")
    assert recipe.prune == PruneConfig(spectra=FarmsConfig(window_rows=16), ends="measured").settled()
    text = (EARLIER / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("window_rows: 16", "window_rows: none"))
    with pytest.raises(DataError, match=r"prune.farms.window_rows must be a whole number"):
        Recipe.load(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text.replace("  farms:", "  spectra: {}\n  farms:"))
    with pytest.raises(DataError, match=r"line \d+: farms must be left out with spectra, its new name, got both"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_selection_with_the_old_key_is_read():
    with old_name(S2FTConfig):
        selection = load_selection(EARLIER / "selection")
    assert selection.config == S2FTConfig(spectra=SMALL)
    assert dict(selection.channels) == {"model.layers.0.mlp.down_proj": (1, 4)}


@SKIPS_ENDS
def test_a_training_checkpoint_with_the_old_keys_is_read(tmp_path):
    saved = json.loads((EARLIER / "callback_state.json").read_text())
    with old_name(FarmsLRConfig):
        callback = FarmsLRCallback.from_state(saved)
    assert callback.config == FarmsLRConfig(interval=0.1, map="step", spectra=SMALL, ends="measured")
    shutil.copytree(EARLIER / "selection", tmp_path, dirs_exist_ok=True)
    state = {"global_step": 3, "log_history": [], "stateful_callbacks": {"FarmsLRCallback": saved}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "farms_lr.jsonl").write_text(
        json.dumps({"step": 1, "epoch": 0.1, "seconds": 0.2, "blocks": [], "layers": {}}) + "\n"
    )
    with pytest.warns(DeprecationWarning, match="farms is named spectra now"):
        report = training_report(tmp_path)
    assert report.farms_lr.config == FarmsLRConfig(interval=0.1, map="step", spectra=SMALL, ends="measured")
    assert report.s2ft.config == S2FTConfig(spectra=SMALL)


def test_a_renamed_option_is_no_difference_to_unfinished_work(tmp_path):
    begun = json.loads((EARLIER / "settings.json").read_text())
    output = OutputFolder(tmp_path / "out")
    output.resume_or_start(begun)
    output.load_or_compute("stage", lambda: "done", lambda result, path: path.write_text(result), Path.read_text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        today = Recipe.load(EARLIER / "recipe.yaml").flat()
    assert today.keys() != begun.keys()
    output.resume_or_start(today)
    assert (output.state / "stage").exists()
    with pytest.raises(OutputError, match=r"begun otherwise \(prune.spectra.window_rows: 'auto', previously 16\)\."):
        output.resume_or_start(today | {"prune.spectra.window_rows": "auto"})
    assert json.loads((output.state / "fingerprint.json").read_text()) == begun


def test_only_keys_of_the_renamed_option_get_another_name():
    for key in ("model", "prune", "prune.method", "farms", "other.farms.fit", "calibration.farms", "prune.farms_x"):
        assert current_name(Recipe, key) == key
    assert current_name(Recipe, "prune.farms.fit") == "prune.spectra.fit"


@pytest.mark.parametrize(
    ("old", "unit", "ends"),
    [(True, "block", "apart"), (True, "layer", "released"), (False, "block", "measured"), (False, "layer", "measured")],
)
def test_skip_ends_becomes_the_value_of_ends_that_does_the_same(old, unit, ends):
    message = rf"^FarmsLRConfig.skip_ends is named ends now. Replace skip_ends={old} by ends='{ends}'; the old name"
    with pytest.warns(DeprecationWarning, match=message) as warned:
        config = FarmsLRConfig(skip_ends=old, unit=unit)
    assert [warning.filename for warning in warned] == [__file__]
    assert config == FarmsLRConfig(ends=ends, unit=unit)
    with pytest.warns(DeprecationWarning, match=message):
        assert dataclasses.replace(FarmsLRConfig(unit=unit), skip_ends=old) == config
    with pytest.warns(DeprecationWarning, match=message):
        assert FarmsLRCallback({"unit": unit, "skip_ends": old}).config == config
    with pytest.warns(DeprecationWarning, match=r"Replace skip_ends by ends;"):
        assert config.skip_ends is old
    document = Document({"unit": unit, "skip_ends": old})
    with pytest.warns(DeprecationWarning, match=message):
        assert parse_dataclass(document, FarmsLRConfig) == config
    state = {**vars(config), "skip_ends": old}
    del state["ends"]
    pickled = object.__new__(FarmsLRConfig)
    pickled.__setstate__(state)
    assert pickled == config == pickle.loads(pickle.dumps(config))


def test_a_wrong_skip_ends_is_refused():
    with (
        pytest.warns(DeprecationWarning, match="skip_ends is named ends now"),
        pytest.raises(ValueError, match=r"ends must be one of measured, first-capped, .*, released, got 'yes'"),
    ):
        FarmsLRConfig(skip_ends="yes")
    with pytest.raises(ValueError, match="skip_ends must be left out with ends, its new name, got both"):
        FarmsLRConfig(skip_ends=True, ends="apart")
    with pytest.raises(DocumentError, match="skip_ends must be true or false, got 'apart'"):
        parse_dataclass(Document({"skip_ends": "apart"}), FarmsLRConfig)


def test_normalise_is_an_argument_and_a_key():
    message = "^FarmsLRConfig.normalise is named normalize now. Replace normalise by normalize; the old name"
    with pytest.warns(DeprecationWarning, match=message):
        assert FarmsLRConfig(normalise=True) == FarmsLRConfig(normalize=True)
    with pytest.warns(DeprecationWarning, match=message):
        assert parse_dataclass(Document({"normalise": True}), FarmsLRConfig) == FarmsLRConfig(normalize=True)
    with pytest.warns(DeprecationWarning, match=message):
        assert FarmsLRConfig(normalize=True).normalise is True


def test_files_and_pickles_of_versions_without_a_field_do_what_those_did():
    @absent_before(ends="measured")
    @renamed(end="ends")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        ends: str = "apart"

    assert Options().ends == "apart"
    assert parse_dataclass(Document({}), Options).ends == "measured"
    assert parse_dataclass(Document({"ends": "lowest"}), Options).ends == "lowest"
    with pytest.warns(DeprecationWarning, match="end is named ends now"):
        assert parse_dataclass(Document({"end": "lowest"}), Options).ends == "lowest"
    config = object.__new__(Options)
    config.__setstate__({})
    assert config.ends == "measured"
    assert copy.copy(Options()).ends == "apart"


def test_recipes_and_reports_without_ends_are_as_measured(tmp_path):
    recovering = ("recover", "recover_passes", "recover_rate", "recover_budget")
    recover = {name: getattr(PruneConfig().settled(), name) for name in recovering}
    assert recover["recover"] == "none"
    prune = {f"prune.{name}": value for name, value in absent_values(PruneConfig).items()}
    assert absent_values(Recipe) == {**prune, "calibration.num_continuations": 0}
    assert absent_values(FarmsLRConfig) == {"ends": "measured"}
    assert absent_values(PruneConfig) == {
        "ends": "measured",
        "granularity": "block",
        "damping": 0.01,
        "block_size": 128,
        "refine": "none",
        **recover,
        "minutes": None,
    }
    with old_name(PruneConfig):
        recipe = Recipe.load(EARLIER / "recipe.yaml")
    assert recipe.prune.ends == "measured"
    changed = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, ends="first-lowest"))
    changed.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == changed


def test_unfinished_work_of_versions_without_ends_goes_on_as_measured_only(tmp_path):
    begun = json.loads((EARLIER / "settings.json").read_text())
    output = OutputFolder(tmp_path / "out")
    output.resume_or_start(begun)
    output.load_or_compute("stage", lambda: "done", lambda result, path: path.write_text(result), Path.read_text)
    with old_name(PruneConfig):
        today = Recipe.load(EARLIER / "recipe.yaml").flat()
    assert today["prune.ends"] == "measured"
    output.resume_or_start(today)
    with pytest.raises(OutputError, match=r"begun otherwise \(prune.ends: 'apart', previously 'measured'\)\."):
        output.resume_or_start(today | {"prune.ends": "apart"})


@pytest.mark.parametrize("kind", [CalibrationConfig, EvaluationConfig])
def test_a_pickle_that_names_the_earlier_module_of_a_config_is_read(kind):
    config = kind(split="held-out")
    assert kind.__module__ == "hf_farms.config.texts"
    earlier = pickle.dumps(config, protocol=0).replace(b"hf_farms.config.texts", b"hf_farms.config.prune")
    with pytest.warns(DeprecationWarning, match=rf"config.prune.{kind.__name__} is hf_farms.config"):
        assert pickle.loads(earlier) == config
