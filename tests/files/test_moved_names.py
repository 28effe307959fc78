import importlib
import subprocess
import sys

import pytest

MOVED = {
    "hf_farms.blocks.KeptTokens": "hf_farms.blocks.TokenMask",
    "hf_farms.config.S2FT_STRATEGIES": "hf_farms.registries.STRATEGIES",
    "hf_farms.hub.check_dataset": "hf_farms.data.datasets.check_dataset",
    "hf_farms.hub.weights_size": "hf_farms.loading.names.model_weights_size",
    "hf_farms.loading.Loaded": "hf_farms.loading.LoadedModel",
    "hf_farms.loading.find_device": "hf_farms.loading.devices.find_device",
    "hf_farms.metrics.MODULES": "hf_farms.metrics.METRICS",
    "hf_farms.s2ft.files.load_selection": "hf_farms.s2ft.saving.load_selection",
    "hf_farms.s2ft.files.save_selection": "hf_farms.s2ft.saving.save_selection",
}


def lookup(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("old", MOVED)
def test_a_name_that_moved_still_works_with_a_warning_at_the_line_that_uses_it(old):
    with pytest.warns(DeprecationWarning, match="the old name will be removed") as caught:
        value = lookup(old)
    assert value is lookup(MOVED[old])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("module", sorted({old.rpartition(".")[0] for old in MOVED}))
def test_a_name_that_never_was_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        lookup(f"{module}.nothing")


def test_the_size_of_weights_is_known_by_the_old_function():
    with pytest.warns(DeprecationWarning, match="model_weights_size now"):
        from hf_farms.hub import weights_size
    assert weights_size("demo") == lookup("hf_farms.loading.names.ModelRef").parse("demo").weights_size > 0


def test_old_names_load_no_torch_before_they_are_used():
    code = (
        "import sys, hf_farms.hub, hf_farms.loading, hf_farms.config, hf_farms.metrics; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
