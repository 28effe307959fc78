"""Recipes, reports and the files of a training: a valid object, or an error of the project."""

import json
from dataclasses import replace

import pytest
import yaml
from cards import both, demo, full
from hf_farms_cards import render_card
from hostile import faulty, faulty_bytes, faulty_json, files, json_bytes, valid_or_refused, write
from hypothesis import given
from hypothesis import strategies as st
from reports import spectral

from hf_farms.config import CalibrationConfig, EvaluationConfig, PruneConfig
from hf_farms.output.existing_results import check_target
from hf_farms.output.recipe import Recipe
from hf_farms.reports import EvaluationReport, PruneReport, SpectralReport, TaskRecord, TrainReport
from hf_farms.reports.comparison import compare_spectra
from hf_farms.reports.folders import load_report

RECIPE = Recipe(
    model="someone/model",
    revision="main",
    dtype="auto",
    prune=PruneConfig(method="sparsegpt", allocation="owl"),
    calibration=CalibrationConfig(),
    evaluation=EvaluationConfig(),
)
# Few blocks, so that the examples reach every part.
REPORTS = {
    "spectral": spectral(),
    "pruned": replace(demo(), blocks=demo().blocks[:2], before=spectral(), after=spectral(), base=full().base),
    "trained": both(),
    "evaluated": EvaluationReport(
        model="m",
        dtype="float32",
        tasks=(TaskRecord(task="t", metric="acc", value=0.5, stderr=None, num_fewshot=0, num_samples=2, version="1"),),
    ),
}
DOCUMENTS = {name: json.loads(report.to_json()) for name, report in REPORTS.items()}
KINDS = {"spectral": SpectralReport, "pruned": PruneReport, "trained": TrainReport, "evaluated": EvaluationReport}


def recipe_document(tmp_path):
    RECIPE.save(tmp_path / "recipe.yaml")
    return yaml.safe_load((tmp_path / "recipe.yaml").read_text())


@files
@given(data=st.data())
def test_recipes(tmp_path, data):
    """One that is read comes back from what it writes."""
    document = recipe_document(tmp_path)
    text = yaml.safe_dump(document, sort_keys=False).encode()
    as_yaml = faulty(document).map(
        lambda changed: yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "replace")
    )
    path = tmp_path / "foreign.yaml"
    write(path, data.draw(as_yaml | faulty(document).map(json_bytes) | faulty_bytes(text)))
    recipe = valid_or_refused(lambda: Recipe.load(path))
    if recipe is not None:
        recipe.describe()
        recipe.save(tmp_path / "again.yaml")
        assert Recipe.load(tmp_path / "again.yaml") == recipe.published()


@pytest.mark.parametrize("name", KINDS)
@files
@given(data=st.data())
def test_reports(tmp_path, name, data):
    """One that is read comes back from what it writes; it can be compared and described in a card."""
    path = tmp_path / "hf_farms_report.json"
    write(path, data.draw(faulty_json(DOCUMENTS[name])))
    report = valid_or_refused(lambda: KINDS[name].load(path))
    if report is None:
        return
    again = type(report).from_json(report.to_json())
    assert again.to_json() == report.to_json()
    if name in ("pruned", "trained"):
        valid_or_refused(lambda: render_card(report)).encode()
    if name == "spectral":
        valid_or_refused(lambda: compare_spectra(report, REPORTS["spectral"]))


@files
@given(data=st.data())
def test_reports_of_folders(tmp_path, data):
    """The kind of a report is read from the report."""
    name = data.draw(st.sampled_from(["pruned", "trained"]))
    write(tmp_path / "hf_farms_report.json", data.draw(faulty_json(DOCUMENTS[name])))
    (tmp_path / "recipe.yaml").touch()
    report = valid_or_refused(lambda: load_report(tmp_path))
    assert report is None or isinstance(report, PruneReport | TrainReport)
    valid_or_refused(lambda: check_target(tmp_path, overwrite=True))


STATE = {
    "global_step": 4,
    "epoch": 0.5,
    "best_model_checkpoint": "out/checkpoint-4",
    "best_global_step": 4,
    "log_history": [
        {"loss": 4.6, "step": 4, "epoch": 0.5, "learning_rate": 1e-3},
        {"eval_loss": 4.5, "eval_runtime": 1.0, "step": 4},
        {"s2ft/trainable_parameters": 100, "s2ft/trainable_share": 0.1, "step": 0},
        {"train_loss": 4.6, "step": 4},
    ],
    "stateful_callbacks": {
        "FarmsLRCallback": {"args": {"config": DOCUMENTS["trained"]["farms_lr"]["config"] or {}}, "attributes": {}}
    },
}
MODEL = {"model_type": "llama", "_name_or_path": "someone/model", "architectures": ["LlamaForCausalLM"]}
SELECTION = {
    "schema_version": 2,
    "base_model": "someone/model",
    "base_revision": None,
    "selection": DOCUMENTS["trained"]["s2ft"]["config"],
    "versions": {},
}
LINE = {
    "step": 2,
    "epoch": 0.25,
    "seconds": 0.1,
    "blocks": [{"name": "model.layers.0", "alpha": 2.0, "alpha_stderr": None, "factor": 1.0}],
    "layers": {"model.layers.0.mlp.up_proj": {"alpha": 2.0, "alpha_stderr": None, "factor": 1.0}},
}
TRAINING = {"trainer_state.json": STATE, "config.json": MODEL, "s2ft_config.json": SELECTION, "farms_lr.jsonl": LINE}


@files
@given(data=st.data())
def test_files_of_a_training(tmp_path, data):
    """Any of them may be another one; a report that is built of them comes back from what it writes."""
    changed = data.draw(st.sampled_from(list(TRAINING)))
    for name, document in TRAINING.items():
        write(tmp_path / name, json_bytes(document))
    write(tmp_path / changed, data.draw(faulty_json(TRAINING[changed])))
    report = valid_or_refused(lambda: load_report(tmp_path))
    if report is not None:
        assert TrainReport.from_json(report.to_json()).to_json() == report.to_json()
        valid_or_refused(lambda: render_card(report)).encode()
