"""Names of files, defaults and citations are written once."""

import inspect
import re
from pathlib import Path

import pytest

import hf_farms
from hf_farms.allocation.lr import lr_factors
from hf_farms.allocation.sparsity import allocate_sparsity
from hf_farms.config import CalibrationConfig, EvaluationConfig, FarmsLRConfig, PruneConfig
from hf_farms.data.texts import read_text
from hf_farms.files import names
from hf_farms.metrics.perplexity import Perplexity

ROOT = Path(hf_farms.__file__).parents[1]
SOURCES = [path for folder in ("hf_farms", "cli", "model_cards") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("name", [name for name in names.__all__ if name not in ("MODEL_CONFIG", "WEIGHTS")])
def test_names_of_files_are_written_once(name):
    literal = re.compile(rf'[="({{\[ ]"{re.escape(getattr(names, name))}"')
    assert [path.name for path in SOURCES if literal.search(path.read_text())] == ["names.py"]


@pytest.mark.parametrize(
    ("function", "config"),
    [
        (lr_factors, FarmsLRConfig()),
        (read_text, CalibrationConfig()),
        (Perplexity._compute, EvaluationConfig()),
    ],
)
def test_defaults_of_functions_are_those_of_the_configs(function, config):
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and hasattr(config, name) and name != "max_windows"
    }
    assert defaults
    assert defaults == {name: getattr(config, name) for name in defaults}


def test_the_bound_of_an_allocation_is_that_of_the_config():
    assert inspect.signature(allocate_sparsity).parameters["bounds"].default == (0.0, PruneConfig().max_sparsity)
