import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from models import tiny

from hf_farms import FarmsConfig, PruneConfig
from hf_farms.blocks import ModelBlockSource
from hf_farms.registries import ALLOCATIONS, AllocationEntry
from hf_farms.search import steps
from hf_farms.search.budget import Budget
from hf_farms.search.steps import Search
from hf_farms.search.trials import Trials


def tokens(rows, length, seed):
    return torch.randint(0, 100, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    model = tiny("llama")
    # Predictions of a random model hardly depend on its blocks; larger weights make losses that can be told apart.
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(10)
    return model


@pytest.fixture
def source(model):
    return ModelBlockSource(model)


@pytest.fixture
def calibration():
    return [{"input_ids": tokens(2, 24, 0)}, {"input_ids": tokens(1, 17, 1)}]


@pytest.fixture
def selection():
    return [tokens(1, 20, seed) for seed in range(10, 18)]


@pytest.fixture
def registered(monkeypatch):
    """An allocation of the user's own and one that fails, and a measurement that fits into tiny layers."""
    for name in ("mine", "failing"):
        entry = AllocationEntry(needs="nothing", function=f"{__name__}:{name}", sentence="Mine.")
        monkeypatch.setitem(ALLOCATIONS, name, entry)
    module = ModuleType(__name__)
    module.mine, module.failing, module.unscored = mine, failing, unscored
    monkeypatch.setitem(sys.modules, __name__, module)
    unscored_path = f"{__name__}:unscored"
    return SimpleNamespace(spectra=FarmsConfig(window_rows=8, windows_per_dim=2), unscored=unscored_path)


def mine(blocks, config):
    # No other allocation gives this plan.
    return [0.4, 0.55, 0.55]


def failing(blocks, config):
    raise ValueError("it fails")


def unscored(layers):
    raise ValueError("it has no score")


@pytest.fixture
def many():
    """More tokens than any tiny layer has inputs."""
    return [{"input_ids": tokens(8, 40, 2)}]


# The plan with the lowest loss in `state`.
BEST = (90, 100, 110)


def distance(plan):
    return float(sum((level - best) ** 2 for level, best in zip(plan, BEST, strict=True)))


@pytest.fixture
def state(source, selection, monkeypatch):
    """A search whose losses are known; `seconds` is its clock, and each plan takes one."""
    state = SimpleNamespace(seconds=0.0, passes=[], stages=[])

    def plan_losses(source, codes, plans, batches, **options):
        state.passes.append((list(plans), len(batches)))
        state.seconds += len(plans) * len(batches) / 2
        return [distance(plan) for plan in plans]

    for name, value in {"SCREEN_TOKENS": 40, "REFINE_TOKENS": 120, "TABLE_TOKENS": 40}.items():
        monkeypatch.setattr(steps, name, value)
    monkeypatch.setattr(steps, "plan_losses", plan_losses)

    def begin(minutes=None):
        budget = Budget(minutes, clock=lambda: state.seconds)
        batches = [{"input_ids": ids} for ids in selection]
        config = PruneConfig(allocation="auto")
        search = Search(source, config, [], batches, None, Trials(), budget, lambda *stage: state.stages.append(stage))
        search._codes = object()
        return search

    state.begin = begin
    return state
