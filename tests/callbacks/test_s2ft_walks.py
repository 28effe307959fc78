"""A start of S2FTCallback searches the model once."""

import gc
import sys
import weakref
from collections import Counter

import pytest
from models import tiny
from s2ft_models import EARLY, trainer
from trainers import Tokens

from hf_farms import S2FTCallback, S2FTConfig, apply_s2ft, select_channels
from hf_farms.s2ft import checks, coupled
from hf_farms.s2ft.surgery import restore, selection_of

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

BLOCKS = 3
CONFIGS = {
    "default": S2FTConfig(budget=0.1),
    "permuted": S2FTConfig(budget=0.1, layout="permuted"),
    "scored by activations": S2FTConfig(budget=0.1, strategy="activation"),
    "budget by alpha": S2FTConfig(budget=0.1, budget_allocation="farms"),
}


@pytest.fixture
def calls(monkeypatch):
    """How often the model is searched for blocks, a block for coupled structures, and the weights are checked."""
    counts = Counter()

    def counted(module, name):
        real = getattr(module, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        for other in [m for key, m in list(sys.modules.items()) if key.startswith(("hf_farms.s2ft", "hf_farms.callb"))]:
            if vars(other).get(name) is real:
                monkeypatch.setattr(other, name, call)

    counted(coupled, "ModelBlockSource")
    counted(coupled, "coupled_structures")
    counted(checks, "check_plain")
    return counts


def batches():
    return [{name: value[None] for name, value in Tokens()[0].items()}]


@EARLY
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_training_searches_the_model_once(config, early, calls, tmp_path):
    run = trainer(tmp_path, S2FTCallback(config, calibration=batches()), early=early, max_steps=1)
    run.train()
    assert calls == {"ModelBlockSource": 1, "coupled_structures": BLOCKS, "check_plain": 1}
    assert selection_of(run.model) == select_channels(tiny("llama"), config, calibration=batches())


@EARLY
def test_a_callback_does_not_keep_the_model_of_its_training(early, tmp_path):
    callback = S2FTCallback(CONFIGS["default"])
    run = trainer(tmp_path, callback, early=early, max_steps=1)
    run.train()
    model = weakref.ref(run.model)
    del run
    gc.collect()
    assert model() is None


def test_functions_search_the_model_once_each(calls):
    model = tiny("llama")
    selection = select_channels(model, CONFIGS["default"])
    assert calls == {"ModelBlockSource": 1, "coupled_structures": BLOCKS}
    calls.clear()
    assert apply_s2ft(model, CONFIGS["default"]) == selection
    assert calls == {"ModelBlockSource": 1, "coupled_structures": BLOCKS, "check_plain": 1}


def test_units_that_others_exclude_need_the_groups_too(calls):
    """Llama's k and v belong to groups of heads, the default units are heads."""
    first = select_channels(tiny("llama"), CONFIGS["default"])
    calls.clear()
    select_channels(tiny("llama"), CONFIGS["default"], exclude=first)
    assert calls == {"ModelBlockSource": 1, "coupled_structures": 2 * BLOCKS}


@pytest.mark.filterwarnings("ignore:the base of the new adapter")
def test_a_model_that_is_selective_already_is_searched_once(calls, tmp_path):
    model = tiny("llama")
    apply_s2ft(model, CONFIGS["default"])
    calls.clear()
    run = trainer(tmp_path, S2FTCallback(CONFIGS["default"]), model=model, max_steps=1)
    run.train()
    assert calls == {"ModelBlockSource": 1, "coupled_structures": BLOCKS}
    # And a plain model again after `restore`.
    calls.clear()
    restore(model)
    trainer(tmp_path, S2FTCallback(CONFIGS["default"]), model=model, max_steps=1)
    assert calls == {"ModelBlockSource": 1, "coupled_structures": BLOCKS, "check_plain": 1}
