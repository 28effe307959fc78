"""What all registries have in common."""

import subprocess
import sys

import pytest

from hf_farms import registries
from hf_farms.registries import METHODS, AllocationEntry, Entry, MethodEntry, Registry, load

ALL = [getattr(registries, name) for name in registries.__all__ if isinstance(getattr(registries, name), Registry)]
LIGHT = """
import sys
import hf_farms.registries, hf_farms.config, hf_farms.reports, hf_farms.output.recipe, hf_farms_cli.app
print(sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
"""


def test_registries_and_what_reads_them_load_no_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.option)
def test_every_entry_names_functions_that_exist(registry):
    for entry in registry.values():
        paths = [entry.function, *(getattr(entry, name, None) for name in ("statistic", "score"))]
        assert all(callable(load(path)) for path in paths if path is not None)


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.option)
def test_an_unknown_name_is_refused_with_the_known_ones(registry):
    names = ", ".join(registry)
    with pytest.raises(ValueError, match=f"^{registry.option} must be one of {names}, got 'unknown'.$"):
        registry["unknown"]
    with pytest.raises(ValueError, match=f"^{registry.option} must be one of {names}, got \\['unknown'\\].$"):
        registry[["unknown"]]


def test_a_name_of_a_registry_is_text():
    from hf_farms.config import PruneConfig

    for value in (["wanda"], {"wanda": 1}, None, 3):
        with pytest.raises(ValueError, match="method must be one of magnitude, wanda, ria, sparsegpt, got"):
            PruneConfig(method=value)


def test_the_sentence_of_an_entry_has_values_of_the_config():
    from hf_farms.config import PruneConfig

    entry = Entry(needs="nothing", function="m:f", sentence="Spread {spread:g}.")
    assert entry.describe(PruneConfig(spread=0.25)) == "Spread 0.25."
    assert all("{" not in METHODS[name].describe(PruneConfig(method=name)) for name in METHODS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Entry(needs="time", function="m:f", sentence=""), "needs must be one of nothing, .* got 'time'"),
        (lambda: Entry(needs="nothing", function="m.f", sentence=""), "function must be an import path .* got 'm.f'"),
        (
            lambda: MethodEntry(needs="activations", function="m:f", sentence=""),
            "statistic must be given",
        ),
        (lambda: MethodEntry(needs="windows", function="m:f", sentence=""), "needs must be 'nothing' or 'activations'"),
        (
            lambda: AllocationEntry(needs="activations", function="m:f", sentence=""),
            "score must be given",
        ),
        (
            lambda: AllocationEntry(needs="gradients", function="m:f", sentence=""),
            "needs must be nothing, windows",
        ),
    ],
)
def test_an_entry_that_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
