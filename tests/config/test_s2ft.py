import dataclasses

import pytest

from hf_farms import S2FTConfig


@pytest.mark.parametrize("budget", [0, 1, -0.1, 1.5, float("nan"), float("inf"), True, "0.1", None])
def test_budgets_that_are_no_fraction_are_refused(budget):
    with pytest.raises(ValueError, match=r"budget must be above 0 and below 1, got .*It is a fraction: 0.01 trains 1%"):
        S2FTConfig(budget=budget)


@pytest.mark.parametrize("roles", ["down", "o", (), None, 3])
def test_roles_must_be_a_tuple(roles):
    with pytest.raises(ValueError, match=r"roles must be a tuple with some of q, k, v, o, gate, up, down, got"):
        S2FTConfig(roles=roles)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"roles": ("o", "wo")}, r"roles must be one of q, k, v, o, gate, up, down, got 'wo'\."),
        ({"roles": ("o", "o")}, r"roles must be different from each other, got \('o', 'o'\)\."),
        ({"strategy": "best"}, r"strategy must be one of random, weight, activation, product, gradient, got 'best'\."),
        ({"keep": "all"}, r"keep must be one of largest, smallest, got 'all'\."),
        ({"seed": -1}, r"seed must be an integer of at least 0, got -1\."),
        ({"seed": 0.5}, r"seed must be an integer of at least 0, got 0.5\."),
        ({"budget_allocation": "alpha"}, r"budget_allocation must be one of uniform, farms, got 'alpha'\."),
        ({"spread": 1}, r"spread must be at least 0 and below 1, got 1\."),
        ({"layout": "sorted"}, r"layout must be one of indexed, permuted, got 'sorted'\."),
        ({"spectra": {"window_rows": 8}}, r"spectra must be a FarmsConfig, got \{'window_rows': 8\}\."),
        ({"write_back": "no"}, r"write_back must be True or False, got 'no'\."),
        ({"max_channels": 0}, r"max_channels must be None or a positive integer, got 0\."),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        S2FTConfig(**options)


def test_configs_are_values():
    assert S2FTConfig(roles=["o", "down"]) == S2FTConfig(roles=("o", "down")) == S2FTConfig()
    assert hash(S2FTConfig(roles=["o", "down"])) == hash(S2FTConfig())
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'budget'"):
        S2FTConfig().budget = 0.5


@pytest.mark.parametrize("strategy", ["random", "weight", "activation", "product", "gradient"])
def test_which_strategies_need_data(strategy):
    assert S2FTConfig(strategy=strategy).needs_data == (strategy not in ("random", "weight"))
