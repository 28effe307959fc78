"""Files that revision 90059e8 wrote are read, and what it left unfinished is continued or refused and left alone."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from earlier import PRUNE_OPTIONS

from hf_farms.config import CalibrationConfig, FarmsConfig, PruneConfig
from hf_farms.config.renamed import absent_values
from hf_farms.output.recipe import Recipe
from hf_farms.reports import PruneReport, SpectralReport
from hf_farms.reports.evaluation import EvaluationReport

WRITTEN = Path(__file__).parents[1] / "golden" / "90059e8"
# Names that have changed since.
pytestmark = pytest.mark.filterwarnings("ignore:.* is named .* now:DeprecationWarning")
# That revision had no `ends`.
EARLIER = PruneConfig(ends="measured").settled()
STATE = ".hf-farms-unfinished"


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_recipe_is_read():
    recipe = Recipe.load(WRITTEN / "demo" / "recipe.yaml")
    assert recipe.model == "demo"
    assert recipe.prune == EARLIER
    assert recipe.calibration.num_sequences == recipe.evaluation.max_windows == 4
    assert recipe.calibration.sequence_length == 64


def test_fields_that_the_recipe_did_not_have_stand_for_what_that_revision_did():
    """Otherwise unfinished work of an earlier version is refused for an option that it did not have."""
    written = yaml.safe_load((WRITTEN / "demo" / "recipe.yaml").read_text(encoding="utf-8"))
    known = {f"{part}.{name}" for part, options in written.items() if isinstance(options, dict) for name in options}
    new = {name for name in Recipe.load(WRITTEN / "demo" / "recipe.yaml").flat() if name.count(".") == 1} - known
    assert "calibration.num_continuations" in new
    assert new <= set(absent_values(Recipe))
    assert absent_values(Recipe)["calibration.num_continuations"] == 0
    old = object.__new__(CalibrationConfig)
    old.__setstate__({name: v for name, v in vars(CalibrationConfig(seed=3)).items() if name != "num_continuations"})
    assert old == CalibrationConfig(seed=3, num_continuations=0)


def test_the_reports_are_read():
    report = PruneReport.load(WRITTEN / "demo" / "hf_farms_report.json")
    assert report.config == EARLIER
    assert report.before.config == FarmsConfig()
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert report.perplexity.dense < report.perplexity.pruned
    spectra = SpectralReport.load(WRITTEN / "demo" / "analyze.json")
    assert [block.alpha for block in spectra.blocks] == [block.alpha for block in report.before.blocks]
    evaluation = EvaluationReport.load(WRITTEN / "demo" / "eval.json")
    assert evaluation.perplexity.dense == pytest.approx(report.perplexity.dense, rel=1e-4)


@pytest.fixture
def work(tmp_path):
    """The small model, its text, and the results of the earlier revision: `peace`, and the beginning of `out`."""
    shutil.copytree(WRITTEN / "prune", tmp_path, dirs_exist_ok=True)
    (tmp_path / "interrupted").rename(tmp_path / "out.partial")
    return tmp_path


def prune(folder, *arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hf_farms_cli", "prune", "model", *PRUNE_OPTIONS, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_unfinished_work_is_continued_to_the_same_bytes_or_refused_with_the_difference(work):
    before = hashes(work / "out.partial")
    assert (work / "out.partial" / STATE / "blocks" / "00000.json").exists()
    code, shown = prune(work, "-o", "out")
    if code == 0:
        expected = {name: digest for name, digest in hashes(work / "peace").items() if "safetensors" in name}
        assert expected.items() <= hashes(work / "out").items()
        assert not (work / "out.partial").exists()
        return
    # Other versions than those that wrote it, or other keys of its settings.
    assert code == 1
    assert "the beginning of the same result, got 'out.partial', which was begun otherwise" in shown, shown[-2000:]
    assert ", previously " in shown
    assert "--overwrite" in shown
    assert hashes(work / "out.partial") == before


def test_other_settings_are_refused_and_leave_it_alone(work):
    before = hashes(work)
    code, shown = prune(work, "-o", "out", "--sparsity", "0.6")
    assert code == 1
    assert "prune.sparsity: 0.6, previously 0.5" in shown
    assert hashes(work) == before


def test_a_finished_result_of_the_same_recipe_is_used_as_it_is(work):
    before = hashes(work / "peace")
    # That revision had no option `ends`.
    code, shown = prune(work, "-o", "peace", "--ends", "measured")
    assert code == 0, shown
    assert before.items() <= hashes(work / "peace").items()
