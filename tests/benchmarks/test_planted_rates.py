"""The arms of planted_rates.py: factors of one mean, and everything else the same."""

from __future__ import annotations

import math
from pathlib import Path

import planted_models
import planted_rates
import pytest
import torch
from demo_data import CONTEXT, VOCABULARY
from planted_conditions import Setting
from planted_models import new_model
from planted_rates import Setup, centered, derangement, factors_of, run
from transformers import LlamaForCausalLM

SMALL = Setting(layers=5, hidden=64, width=64)


@pytest.fixture(autouse=True)
def small_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = torch.randint(VOCABULARY, (4 * CONTEXT,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(planted_models, "tokens", lambda split: text)


@pytest.fixture
def setup() -> Setup:
    return Setup(10, 3e-3, lambda folder, family: (uneven_model(family), [1]), handicap=0.1)


@torch.no_grad()
def uneven_model(family: int) -> LlamaForCausalLM:
    """Blocks with tails of their own; those of new models differ by no more than chance."""
    model = new_model(SMALL, family)
    for index, block in enumerate(model.model.layers):
        for weight in block.parameters():
            weight.mul_((index * 0.3 * torch.randn(weight.shape)).exp())
    return model


@pytest.mark.parametrize("arm", planted_rates.ARMS)
def test_the_factors_of_every_arm_have_the_geometric_mean_one(setup: Setup, arm: str) -> None:
    row = run(Path("unread"), setup, 1, arm, ends="lowest")
    assert math.prod(row["factors"]) == pytest.approx(1, abs=5e-3)  # type: ignore[arg-type]
    assert (set(row["factors"]) == {1.0}) == (arm == "none")  # type: ignore[call-overload]


def test_an_arm_runs_twice_to_the_same_loss_and_another_arm_to_another(setup: Setup) -> None:
    first, again, oracle = (run(Path("unread"), setup, 1, arm)["select"] for arm in ("none", "none", "oracle"))
    # Equal up to the order of sums, which follows the addresses in memory.
    assert first == pytest.approx(again, abs=2e-4)
    assert oracle != pytest.approx(first, abs=1e-3)


def test_the_oracle_favors_planted_blocks_and_norms_those_that_are_small() -> None:
    model = new_model(SMALL, 0)
    with torch.no_grad():
        for weight in model.model.layers[2].parameters():
            weight.mul_(0.1)
    assert factors_of("oracle", [1], 0, "lowest")(model) == [1.0, 3.0, 1.0, 1.0, 1.0]
    norm = factors_of("norm", [1], 0, "lowest")(model)
    assert max(norm) == norm[2] > 1


def test_centered_factors_keep_their_ratios() -> None:
    low, high = centered([1.0, 4.0])
    assert (low, high) == pytest.approx((0.5, 2.0))


@pytest.mark.parametrize("seed", range(5))
def test_a_derangement_leaves_nothing_in_place(seed: int) -> None:
    order = derangement(8, seed)
    assert sorted(order) == list(range(8))
    assert all(i != j for i, j in enumerate(order))
