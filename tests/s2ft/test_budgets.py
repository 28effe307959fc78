"""Budgets: how many units each block trains, uniform and by spectra."""

import math

import pytest
import torch
from families import family_model
from models import tiny

from hf_farms import FarmsConfig, S2FTConfig, analyze, select_channels
from hf_farms.errors import HfFarmsWarning
from hf_farms.s2ft.selection import Selection


def trained(model, selection):
    """Weights trained in each block."""
    sizes = [0] * len(model.model.layers)
    for name, channels in selection.channels.items():
        weight = model.get_submodule(name).weight
        sizes[int(name.split(".")[2])] += (
            len(channels) * weight.shape[0 if name.endswith(("o_proj", "down_proj")) else 1]
        )
    return sizes


@pytest.mark.parametrize("roles", [("o", "down"), ("down",), ("q", "k", "v", "o", "up", "down"), ("up", "o")], ids=str)
@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_the_budget_is_used_and_never_exceeded(llama, roles, layout):
    total = sum(p.numel() for p in llama.parameters())
    unit = 32 * sum(role in roles for role in ("gate", "up", "down"))
    for percent in range(17, 25) if "q" in roles else range(7, 16):
        config = S2FTConfig(budget=percent / 100, roles=roles, layout=layout)
        for size in trained(llama, select_channels(llama, config)):
            assert size <= config.budget * total / 3 < size + unit


@pytest.mark.parametrize(
    ("budget", "heads", "channels"),
    [(0.035, 1, 2), (0.06, 1, 10), (0.08, 2, 8), (0.13, 3, 16), (0.14, 3, 19), (0.2, 4, 29), (0.25, 4, 45)],
)
def test_heads_are_rounded_and_channels_take_the_rest(llama, budget, heads, channels):
    """A head of o is 256 weights of 29,664, a channel of down 32; three blocks."""
    assert sum(p.numel() for p in llama.parameters()) == 29_664
    found = select_channels(llama, S2FTConfig(budget=budget)).channels
    assert [len(c) for n, c in found.items() if n.endswith("o_proj")] == [heads * 8] * 3
    assert [len(c) for n, c in found.items() if n.endswith("down_proj")] == [channels] * 3


def test_heads_take_what_channels_cannot_use(llama):
    """The other adapter left two channels in each block."""
    other = Selection(S2FTConfig(), {f"model.layers.{b}.mlp.down_proj": tuple(range(2, 48)) for b in range(3)})
    found = select_channels(llama, S2FTConfig(budget=0.09), exclude=other).channels
    assert [found[f"model.layers.{b}.mlp.down_proj"] for b in range(3)] == [(0, 1)] * 3
    assert [len(found[f"model.layers.{b}.self_attn.o_proj"]) for b in range(3)] == [24] * 3


def test_tied_weights_count_once():
    tied = tiny("llama", tie_word_embeddings=True)
    separate = tiny("llama")
    sizes = [
        trained(model, select_channels(model, S2FTConfig(budget=0.1, roles=("down",))))[0] for model in (tied, separate)
    ]
    total = sum(p.numel() for p in separate.parameters())
    assert sizes == [math.floor(0.1 * (total - taken) / 3 / 32) * 32 for taken in (3200, 0)]


def test_too_small_and_too_large_budgets(llama):
    with pytest.raises(
        ValueError, match=r"budget must be at least 0\.0\d+ to train one head or channel in each block, got 1e-05"
    ):
        select_channels(llama, S2FTConfig(budget=1e-5))
    with pytest.warns(
        HfFarmsWarning, match=r"budget must be at least (0\.\d+) to train o too, got 0.01: they are frozen"
    ) as caught:
        found = select_channels(llama, S2FTConfig(budget=0.01))
    assert all(name.endswith("down_proj") for name in found.channels)
    # What the warning asks for is enough.
    least = float(str(caught[0].message).split("least ")[1].split()[0])
    assert any(name.endswith("o_proj") for name in select_channels(llama, S2FTConfig(budget=least * 1.05)).channels)
    with pytest.warns(
        HfFarmsWarning, match=r"budget must be at most 0\.\d+, which is all that o, down have to train, got 0.9"
    ):
        found = select_channels(llama, S2FTConfig(budget=0.9))
    assert trained(llama, found) == [2560] * 3


def test_the_least_budget_of_the_error_is_enough(llama):
    with pytest.raises(ValueError, match="budget must be at least") as error:
        select_channels(llama, S2FTConfig(budget=1e-5, roles=("v", "o")))
    least = float(str(error.value).split("least ")[1].split()[0])
    assert len(select_channels(llama, S2FTConfig(budget=least * 1.05, roles=("v", "o")))) == 6


def lengths(selection, end):
    return {len(channels) for name, channels in selection.channels.items() if name.endswith(end)}


@pytest.mark.parametrize(("limit", "heads", "channels"), [(8, 1, 8), (17, 2, 17), (24, 3, 24), (29, 3, 29)])
def test_a_limit_of_channels_counts_whole_heads(llama, limit, heads, channels):
    """Without the limit a budget of 0.2 trains 4 heads of 8 channels, and 29 feed-forward channels."""
    with pytest.warns(HfFarmsWarning, match=rf"max_channels must be at least 32 to use the budget .*, got {limit}"):
        found = select_channels(llama, S2FTConfig(budget=0.2, max_channels=limit))
    assert (lengths(found, "o_proj"), lengths(found, "down_proj")) == ({heads * 8}, {channels})


def test_the_warning_of_a_limit_has_the_share_that_is_left(llama):
    total = sum(p.numel() for p in llama.parameters())
    with pytest.warns(HfFarmsWarning) as caught:
        found = select_channels(llama, S2FTConfig(budget=0.2, max_channels=16))
    share = sum(trained(llama, found)) / total
    assert [str(warning.message) for warning in caught] == [
        "max_channels must be at least 32 to use the budget of 0.2, got 16: "
        f"{share:.2g} of the parameters are trained. Raise it, or add roles."
    ]
    assert caught[0].filename == __file__


def test_a_limit_that_costs_nothing_is_silent(llama):
    for limit in (32, 256):
        config = S2FTConfig(budget=0.2, max_channels=limit)
        assert select_channels(llama, config).channels == select_channels(llama, S2FTConfig(budget=0.2)).channels


def test_no_weight_exceeds_the_limit(llama):
    roles = ("q", "k", "v", "o", "gate", "up", "down")
    with pytest.warns(HfFarmsWarning, match="max_channels must be at least"):
        found = select_channels(llama, S2FTConfig(budget=0.5, max_channels=23, roles=roles)).channels
    ends = {"q_proj": 16, "k_proj": 8, "v_proj": 8, "o_proj": 16, "gate_proj": 23, "up_proj": 23, "down_proj": 23}
    assert {name.rpartition(".")[2]: len(channels) for name, channels in found.items()} == ends


def test_a_limit_below_one_head_is_refused(llama):
    with pytest.raises(ValueError, match=r"max_channels must be at least 8, the channels of one head .*, got 7\."):
        select_channels(llama, S2FTConfig(budget=0.2, max_channels=7))
    # A group has two query heads.
    with pytest.raises(ValueError, match=r"max_channels must be at least 16, .*got 15"):
        select_channels(llama, S2FTConfig(budget=0.2, max_channels=15, roles=("v", "o")))
    with pytest.warns(HfFarmsWarning, match="max_channels must be at least 48 to use"):
        found = select_channels(llama, S2FTConfig(budget=0.2, max_channels=1, roles=("down",)))
    assert {len(channels) for channels in found.channels.values()} == {1}


def test_roles_inside_one_weight_count_together():
    """A group of heads of Phi-3 has 16 rows of q, 8 of k and 8 of v in one weight."""
    model = family_model("phi3")
    roles = ("q", "k", "v")
    with pytest.raises(ValueError, match=r"max_channels must be at least 32, .*got 31"):
        select_channels(model, S2FTConfig(budget=0.2, max_channels=31, roles=roles))
    with pytest.warns(HfFarmsWarning, match="max_channels must be at least 64 to use"):
        found = select_channels(model, S2FTConfig(budget=0.2, max_channels=63, roles=roles)).channels
    assert [len(found[f"model.layers.0.self_attn.qkv_proj.{role}"]) for role in roles] == [16, 8, 8]


def with_tails(model, exponents):
    """Blocks whose singular values fall with different exponents: the heavier the tail, the smaller alpha."""
    for block, exponent in zip(model.model.layers, exponents, strict=True):
        for weight in (p for p in block.parameters() if p.ndim == 2):
            u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
            values = torch.arange(1, len(s) + 1, dtype=torch.float32) ** -exponent
            weight.data.copy_(u @ (values[:, None] * v))
    return model


FARMS = {"budget_allocation": "farms", "spread": 0.5, "spectra": FarmsConfig(window_rows=16, windows_per_dim=2)}


def test_badly_trained_blocks_get_more():
    model = with_tails(tiny("llama"), [1.0, 0.2, 0.5])
    alphas = [block.alpha for block in analyze(model, FARMS["spectra"]).blocks]
    assert alphas[0] < alphas[2] < alphas[1]
    config = S2FTConfig(budget=0.1, roles=("down",), **FARMS)
    sizes = trained(model, select_channels(model, config))
    assert sizes[0] < sizes[2] < sizes[1]
    total = sum(p.numel() for p in model.parameters())
    assert sum(sizes) <= 0.1 * total < sum(sizes) + 3 * 32
    uniform = trained(model, select_channels(model, S2FTConfig(budget=0.1, roles=("down",))))
    assert len(set(uniform)) == 1


def test_no_signal_gives_uniform_budgets():
    model = tiny("llama", seed=1)
    config = S2FTConfig(budget=0.1, roles=("down",), **FARMS)
    assert len(set(trained(model, select_channels(model, config)))) == 1
