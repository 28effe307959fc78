import re

import pytest
from torch import nn

from hf_farms import (
    EvaluationConfig,
    PruneConfig,
    analyze_checkpoint,
    compare_checkpoints,
    evaluate_checkpoint,
    prune_checkpoint,
    push,
)
from hf_farms.errors import OutputError

QUICK = {"config": PruneConfig(method="magnitude", allocation="uniform"), "evaluation": EvaluationConfig(source=None)}
CALLS = {
    "prune": lambda model="demo", **options: prune_checkpoint(model, "out", **QUICK, **options),
    "evaluate": lambda model="demo", **options: evaluate_checkpoint(model, **options),
    "analyze": lambda model="demo", **options: analyze_checkpoint(model, **options),
    "compare": lambda model="demo", **options: compare_checkpoints(model, "demo", **options),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", [None, 3, nn.Linear(2, 2)])
def test_models_that_are_no_names_are_refused_before_the_hub_is_asked(call, model):
    with pytest.raises(ValueError, match=r"(model|first) must be a hub id, a folder or 'demo', got (None|3|'?Linear)"):
        CALLS[call](model)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("progress", [True, 3])
def test_progress_that_cannot_be_called_is_refused(call, progress):
    with pytest.raises(ValueError, match=f"progress must be a function of .*, got {progress}"):
        CALLS[call](progress=progress)


def test_the_second_model_of_a_comparison_is_a_name_too():
    with pytest.raises(ValueError, match="second must be a hub id, a folder or 'demo', got None"):
        compare_checkpoints("demo", None)


@pytest.mark.parametrize(
    ("call", "options", "sentence"),
    [
        ("prune", {"baseline": "no"}, "baseline must be True or False, got 'no'."),
        ("prune", {"overwrite": "no"}, "overwrite must be True or False, got 'no'."),
        ("evaluate", {"metrics": None}, "metrics must be a sequence of names, got None."),
        (
            "evaluate",
            {"metrics": "sparsity"},
            "metrics must be a sequence of names, got 'sparsity'. Write ['sparsity'].",
        ),
        ("evaluate", {"tasks": [3]}, "tasks must be a sequence of names, got 3."),
        (
            "evaluate",
            {"text": "a.txt"},
            "text must be an EvaluationConfig, a mapping of its fields, or None, got 'a.txt'.",
        ),
        ("evaluate", {"text": [1]}, "text must be an EvaluationConfig, a mapping of its fields, or None, got [1]."),
        ("evaluate", {"load": {}}, "load must be a LoadOptions or None, got {}. Write LoadOptions(...)."),
        ("evaluate", {"base": "yes"}, "base must be True or False or None, got 'yes'."),
        ("evaluate", {"output": 3}, "output must be a path or None, got 3."),
        ("analyze", {"output": 3}, "output must be a path or None, got 3."),
        ("analyze", {"esd": "layer"}, "esd must be a sequence of names, got 'layer'. Write ['layer']."),
        ("analyze", {"allow_pickle": "no"}, "allow_pickle must be True or False, got 'no'."),
        ("compare", {"outside": "no"}, "outside must be True or False, got 'no'."),
    ],
)
def test_arguments_of_another_type_are_refused(call, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        CALLS[call](**options)


def test_a_plan_of_another_type_is_refused():
    with pytest.raises(ValueError, match="plan must be a PushPlan or None, got 'x'"):
        push("out", plan="x")


def test_figures_in_place_of_which_there_is_a_file_are_refused(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"figures must be a folder, got the file '.*notes.txt'"):
        analyze_checkpoint("demo", figures=file)
    assert file.read_text(encoding="utf-8") == "mine"
    file.unlink()
