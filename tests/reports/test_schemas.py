import json
import runpy
from pathlib import Path

import jsonschema
import pytest

from hf_farms.config import FarmsLRConfig, PruneConfig
from hf_farms.pruning.pruner import prune
from hf_farms.reports import EvaluationReport, TaskRecord, TrainReport
from hf_farms.reports.comparison import compare_spectra
from hf_farms.reports.training import FarmsLRRecord
from hf_farms.spectra.analysis import analyze

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "hf_farms" / "reports" / "schemas"
NAMES = ["spectral_report", "prune_report", "spectral_comparison", "evaluation_report", "train_report"]


@pytest.fixture
def reports(llama):
    spectra = analyze(llama, outside=True)
    report = prune(llama, PruneConfig(method="magnitude"), spectra=spectra).report
    task = TaskRecord(
        task="t", metric="acc", value=0.5, stderr=None, num_fewshot=0, num_samples=2, version="1", dense=0.5
    )
    evaluation = EvaluationReport(model="m", dtype="float32", tasks=(task,))
    rates = FarmsLRRecord(config=FarmsLRConfig(), measurements=())
    training = TrainReport(
        model=None, model_type="llama", num_parameters=1, num_trained=1, steps=2, epochs=0.5, farms_lr=rates
    )
    return {
        "spectral_report": spectra,
        "prune_report": report,
        "spectral_comparison": compare_spectra(spectra, analyze(llama)),
        "evaluation_report": evaluation,
        "train_report": training,
    }


def schema(name):
    return json.loads((FOLDER / f"{name}.schema.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_published_schema_is_that_of_the_code(name):
    script = ROOT / ".github" / "schemas.py"
    if not script.exists():
        pytest.skip("schemas are generated from a source checkout")
    made = runpy.run_path(str(script))
    assert (FOLDER / f"{name}.schema.json").read_text() == made["text_of"](made["REPORTS"][name]), "run `make schemas`"


@pytest.mark.parametrize("name", NAMES)
def test_real_reports_fit_their_schema(name, reports):
    jsonschema.validate(json.loads(reports[name].to_json()), schema(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=1), "2 was expected"),
        (lambda data: data.update(surplus=1), "'surplus' was unexpected"),
        (lambda data: data["blocks"][0]["layers"][0].pop("alpha"), "'alpha' is a required property"),
        (lambda data: data["blocks"][0]["layers"][0].update(alpha="2"), "'2' is not valid under any"),
    ],
)
def test_other_json_does_not_fit(change, message, reports):
    data = json.loads(reports["spectral_report"].to_json())
    change(data)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(data, schema("spectral_report"))
