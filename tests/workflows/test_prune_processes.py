"""`prune_checkpoint` on two processes: one result, written by the first, and none if one of them fails."""

import json

import pytest
from launch import run_script
from models import save_short_demo
from safetensors.torch import load_file
from shared_pruning import demo_settings, distilled_settings, searched_settings

from hf_farms import LoadOptions, PruneReport, prune_checkpoint
from hf_farms.data import calibration

# Five calibration batches: one process gets two of them, the other one three.
TOKENS_PER_BATCH = 128
SCRIPT = f"""
import json, os, shutil, sys
from pathlib import Path
from shared_pruning import BAD_PLAN, demo_settings, distilled_settings, searched_settings
from hf_farms import EvaluationConfig, FarmsConfig, LoadOptions, analyze_checkpoint, prune_checkpoint
from hf_farms.data import calibration
from hf_farms.errors import DataError
from hf_farms.pruning import block_loop
from hf_farms.reports import SearchRecord
from hf_farms.workflows import prune_plan, selection
from hf_farms_cli.__main__ import main
calibration.TOKENS_PER_BATCH = {TOKENS_PER_BATCH}
folder, model, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
measure, outcomes = block_loop.measure, []

def attempt(name, fail=None, block=0, settings=demo_settings, **options):
    calls = []
    def broken(*args, **kwargs):
        calls.append(None)
        if rank == 1 and len(calls) == block:
            fail()
        return measure(*args, **kwargs)
    block_loop.measure = broken
    try:
        prune_checkpoint(model, folder / name, **(settings() | options))
        outcomes.append(None)
    except Exception as error:
        outcomes.append([type(error).__name__, str(error)])
    (folder / f"{{rank}}.json").write_text(json.dumps(outcomes))

def no_room():
    raise MemoryError("no room")

stream = LoadOptions(stream=True, dtype="float32")
attempt("streamed", no_room, 3, load=stream, baseline=False)
if rank == 0:
    shutil.copytree(folder / "streamed.partial", folder / "other.partial")
attempt("streamed", load=stream, baseline=False)
attempt("in memory")
attempt("distilled", settings=distilled_settings)
selection.search_sparsities = lambda *args, **options: SearchRecord(winner="bad", sparsities=BAD_PLAN)
prune_checkpoint(model, folder / "searched", **searched_settings())
def by_rank():
    return demo_settings() | dict(evaluation=EvaluationConfig(context_length=64 + rank, max_windows=5))
try:
    analyze_checkpoint(model, FarmsConfig(aspect_ratio=1.0 + rank))
except ValueError as error:
    outcomes.append(str(error))

# An error on one process before the work is shared, on the command line.
plan = prune_plan.plan_prune
def broken_plan(*args, **options):
    if rank == 1:
        raise DataError("text must exist, got none.")
    return plan(*args, **options)
prune_plan.plan_prune = broken_plan
sys.argv = ["hf-farms", "prune", model, "--output", str(folder / "unplanned"), "--no-baseline"]
try:
    main()
except SystemExit as end:
    outcomes.append(end.code)
attempt("other", settings=by_rank)
attempt("lost", lambda: os._exit(0), 2, baseline=False)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_short_demo(tmp_path_factory.mktemp("short") / "demo", 4)


@pytest.fixture(scope="module")
def two(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("two")
    (folder / "printed").write_text(run_script(SCRIPT, folder, model).stderr)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("alone") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "TOKENS_PER_BATCH", TOKENS_PER_BATCH)
        prune_checkpoint(model, folder, **demo_settings())
    return folder


def outcomes(folder, rank):
    return json.loads((folder / f"{rank}.json").read_text())


def tensors(folder):
    loaded = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor.double() for file in loaded for name, tensor in file.items()}


def assert_alike(folder, expected):
    """Assert that weights are the same but for rounding, by which masks differ at ties."""
    found, wanted = tensors(folder), tensors(expected)
    assert found.keys() == wanted.keys()
    different = sum(int(((found[name] == 0) != (wanted[name] == 0)).sum()) for name in found)
    assert different <= 1e-4 * sum(tensor.numel() for tensor in found.values())
    for name, tensor in found.items():
        assert (tensor - wanted[name]).norm() <= 1e-3 * wanted[name].norm(), name


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["streamed", "in memory"])
def test_two_processes_write_what_one_writes(two, alone, name):
    assert_alike(two / name, alone)
    assert files(two / name) == files(alone)
    assert not (two / f"{name}.partial").exists()
    report, other = (PruneReport.load(folder / "hf_farms_report.json") for folder in (two / name, alone))
    assert report.before == other.before
    assert report.calibration == other.calibration
    assert report.perplexity.dense == pytest.approx(other.perplexity.dense, rel=1e-3)
    assert report.perplexity.pruned == pytest.approx(other.perplexity.pruned, rel=1e-3)
    if name == "in memory":
        assert report.perplexity.uniform == pytest.approx(other.perplexity.uniform, rel=1e-3)


def test_an_error_of_one_process_stops_both_and_leaves_unfinished_work(two, alone, model, monkeypatch):
    assert outcomes(two, 1)[0] == ["MemoryError", "no room"]
    assert outcomes(two, 0)[0] == ["HfFarmsError", "process 1 of 2 failed: MemoryError('no room')"]
    blocks = sorted(path.name for path in (two / "other.partial").glob("*.safetensors"))
    assert blocks == ["model-00001-of-00005.safetensors", "model-00002-of-00005.safetensors"]
    # Two processes went on with it, and one does.
    assert outcomes(two, 0)[1:3] == outcomes(two, 1)[1:3] == [None, None]
    monkeypatch.setattr(calibration, "TOKENS_PER_BATCH", TOKENS_PER_BATCH)
    seen = []
    prune_checkpoint(
        model,
        two / "other",
        **demo_settings() | {"load": LoadOptions(stream=True, dtype="float32")},
        baseline=False,
        progress=lambda *step: seen.append(step[0]),
    )
    assert "score" not in seen
    assert_alike(two / "other", alone)


@pytest.mark.filterwarnings("ignore::hf_farms.errors.HfFarmsWarning")
def test_the_first_process_trains_and_the_others_get_its_weights(two, model, tmp_path):
    report = prune_checkpoint(model, tmp_path / "distilled", **distilled_settings())
    assert report.distillation.accepted
    assert outcomes(two, 0)[3] is outcomes(two, 1)[3] is None
    assert_alike(two / "distilled", tmp_path / "distilled")
    assert files(two / "distilled") == files(tmp_path / "distilled")
    shared = PruneReport.load(two / "distilled" / "hf_farms_report.json")
    assert shared.distillation.steps == report.distillation.steps
    assert shared.distillation.divergence == pytest.approx(report.distillation.divergence, rel=0.02)
    # Both processes measured the spectra of the trained weights, each of some layers.
    assert [block.name for block in shared.after.blocks] == [block.name for block in report.after.blocks]
    assert [b.alpha for b in shared.after.blocks] == pytest.approx([b.alpha for b in report.after.blocks], rel=1e-3)


@pytest.mark.filterwarnings("ignore::hf_farms.errors.HfFarmsWarning")
def test_both_take_uniform_sparsity_where_the_plan_of_a_search_is_worse(two, model, tmp_path):
    uniform = prune_checkpoint(model, tmp_path / "uniform", **searched_settings("uniform"))
    assert_alike(two / "searched", tmp_path / "uniform")
    report = PruneReport.load(two / "searched" / "hf_farms_report.json")
    assert report.search.taken == "uniform"
    assert [block.sparsity for block in report.blocks] == [block.sparsity for block in uniform.blocks]
    assert [b.alpha for b in report.after.blocks] == pytest.approx([b.alpha for b in uniform.after.blocks], rel=1e-3)


def test_arguments_that_differ_between_processes(two):
    for rank in (0, 1):
        kind, message = outcomes(two, rank)[6]
        assert kind == "ValueError"
        assert message.startswith(
            "evaluation.context_length must be the same on all processes, got 64 in process 0 and 65"
        )
        assert outcomes(two, rank)[4].startswith("config must be the same on all processes, got FarmsConfig(")


def test_an_error_before_the_work_is_printed_once(two):
    assert (two / "printed").read_text().count("text must exist, got none.") == 1
    assert outcomes(two, 0)[5] == outcomes(two, 1)[5] == 1
    assert not (two / "unplanned").exists()


def test_a_process_that_is_gone_is_named_by_the_other(two):
    assert len(outcomes(two, 1)) == 7
    kind, message = outcomes(two, 0)[7]
    assert kind == "HfFarmsError"
    assert message == "processes must run until the result is complete, got one that ended or cannot be reached."
    assert (two / "lost.partial").exists()
    assert not (two / "lost").exists()
