"""Which units are chosen, against norms that are written out unit by unit."""

import gc
import math
import weakref

import pytest
import torch
from families import family_model
from models import tiny

from hf_farms import FarmsConfig, S2FTConfig, analyze, select_channels
from hf_farms.errors import DataError, HfFarmsWarning, ModelError
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.selection import Selection
from hf_farms.s2ft.unit_norms import unit_norms

# model, roles, layout; units of the attention are heads, groups, and single heads without grouped queries.
SETTINGS = {
    "heads": ("llama", ("o", "down"), "indexed"),
    "groups": ("llama", ("q", "v", "o", "up", "down"), "indexed"),
    "moved": ("qwen2", ("o", "gate", "up"), "permuted"),
    "fused": ("phi3", ("k", "v", "gate", "down"), "indexed"),
    "conv1d": ("gpt2", ("v", "o", "down"), "indexed"),
    "interleaved": ("gpt_neox", ("q", "o", "up"), "permuted"),
}
HEADS, SIZE = 4, 8


def groups_of(name, roles, layout):
    """Query heads in one unit of the attention."""
    grouped = name in ("llama", "qwen2", "phi3")
    return 2 if grouped and (layout == "permuted" or {"k", "v"} & set(roles)) else 1


def matrices(model, name, gradient=False):
    """`(out, in)` weights, or their gradients, of each block by role, cut by hand as the model's code does."""

    def of(module):
        weight = module.weight.grad if gradient else module.weight.detach()
        return weight.mT if "Conv1D" in type(module).__name__ else weight

    found = []
    for block in blocks(model, name):
        if name == "gpt2":
            q, k, v = of(block.attn.c_attn).split(32)
            mlp = {"up": of(block.mlp.c_fc), "down": of(block.mlp.c_proj)}
            found.append({"q": q, "k": k, "v": v, "o": of(block.attn.c_proj), **mlp})
        elif name == "gpt_neox":
            fused = of(block.attention.query_key_value).reshape(HEADS, 3, SIZE, 32)
            q, k, v = (fused[:, i].reshape(32, 32) for i in range(3))
            mlp = {"up": of(block.mlp.dense_h_to_4h), "down": of(block.mlp.dense_4h_to_h)}
            found.append({"q": q, "k": k, "v": v, "o": of(block.attention.dense), **mlp})
        elif name == "phi3":
            q, k, v = of(block.self_attn.qkv_proj).split([32, 16, 16])
            gate, up = of(block.mlp.gate_up_proj).split(48)
            found.append(
                {"q": q, "k": k, "v": v, "o": of(block.self_attn.o_proj), "gate": gate, "up": up}
                | {"down": of(block.mlp.down_proj)}
            )
        else:
            found.append({role: of(getattr(block.self_attn, f"{role}_proj")) for role in "qkvo"})
            found[-1] |= {role: of(getattr(block.mlp, f"{role}_proj")) for role in ("gate", "up", "down")}
    return found


def blocks(model, name):
    if name == "gpt2":
        return model.transformer.h
    return model.gpt_neox.layers if name == "gpt_neox" else model.model.layers


def inputs_of(block, name):
    """The modules whose inputs are the activations of heads and of channels."""
    if name == "gpt2":
        return block.attn.c_proj, block.mlp.c_proj
    if name == "gpt_neox":
        return block.attention.dense, block.mlp.dense_4h_to_h
    return block.self_attn.o_proj, block.mlp.down_proj


ATTENTION = ("q", "k", "v", "o")


def units_by_hand(found, roles, queries):
    """For the attention and the feed-forward network the trained weights of every unit, as a list of tensors."""
    for kind in (ATTENTION, ("gate", "up", "down")):
        count = HEADS // queries if kind is ATTENTION else found["down"].shape[1]
        units = [[] for _ in range(count)]
        for role in (role for role in roles if role in kind):
            matrix = found[role].mT if role in ("o", "down") else found[role]
            width = matrix.shape[0] // count
            for unit in range(count):
                units[unit].append(matrix[unit * width : (unit + 1) * width])
        yield units


def weight_norms(model, name, roles, queries):
    return [
        [[math.sqrt(sum(float(w.double().square().sum()) for w in unit)) for unit in units] for units in both]
        for both in (list(units_by_hand(found, roles, queries)) for found in matrices(model, name))
    ]


def activation_norms(model, name, roles, queries, batches):
    """All activations are kept."""
    kept = [[[], []] for _ in blocks(model, name)]
    handles = [
        module.register_forward_hook(lambda m, args, out, to=kept[b][side]: to.append(args[0].detach().clone()))
        for b, block in enumerate(blocks(model, name))
        for side, module in enumerate(inputs_of(block, name))
    ]
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    found = []
    for sides in kept:
        found.append([])
        for side, width in zip(sides, (SIZE * queries, 1), strict=True):
            tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in side]).double()
            found[-1].append([float(unit.norm()) for unit in tokens.split(width, dim=1)])
    return found


def gradient_norms(model, name, roles, queries, batches):
    totals = None
    for batch in batches:
        model.zero_grad()
        model.requires_grad_(True)
        model(**batch).loss.backward()
        squares = [
            [[sum(float(w.double().square().sum()) for w in unit) for unit in units] for units in both]
            for both in (list(units_by_hand(g, roles, queries)) for g in matrices(model, name, gradient=True))
        ]
        totals = squares if totals is None else add(totals, squares)
    model.zero_grad()
    return [[[math.sqrt(value) for value in units] for units in both] for both in totals]


def add(a, b):
    return a + b if isinstance(a, float) else [add(x, y) for x, y in zip(a, b, strict=True)]


def multiply(a, b):
    return a * b if isinstance(a, float) else [multiply(x, y) for x, y in zip(a, b, strict=True)]


@pytest.fixture
def batches(ids):
    ids = [ids[0], ids[1][None]]
    return [{"input_ids": tokens, "labels": tokens} for tokens in ids]


def chosen_units(selection, model, name, roles, queries):
    """The units that were chosen, in each block those of heads and of channels; the same in every layer of a block."""
    found = []
    for number in range(len(blocks(model, name))):
        found.append([])
        for kind in (ATTENTION, ("gate", "up", "down")):
            of_layers = []
            for role in (role for role in roles if role in kind):
                (layer,) = [layer for layer in selection.channels if role_in(layer, number) == role]
                size = SIZE if kind is ATTENTION else 1
                width = 1 if role in ("k", "v") and name in ("llama", "qwen2", "phi3") else queries
                width = size * (width if kind is ATTENTION else 1)
                channels = selection.channels[layer]
                units = sorted({c // width for c in channels})
                assert list(channels) == [c for unit in units for c in range(unit * width, (unit + 1) * width)]
                of_layers.append(units)
            assert all(units == of_layers[0] for units in of_layers)
            found[-1].append(of_layers[0])
    return found


ENDS = {
    **{f"{role}_proj": role for role in ("q", "k", "v", "o", "gate", "up", "down")},
    **{f".{role}": role for role in ("q", "k", "v", "gate", "up")},
    **{"attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down", "attention.dense": "o"},
    **{"dense_h_to_4h": "up", "dense_4h_to_h": "down"},
}


def role_in(layer, number):
    if f".{number}." not in layer:
        return None
    return next((role for end, role in ENDS.items() if layer.endswith(end)), None)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("keep", ["largest", "smallest"])
@pytest.mark.parametrize("strategy", ["weight", "activation", "product", "gradient"])
def test_units_are_those_of_the_norms_written_out(setting, keep, strategy, batches):
    name, roles, layout = SETTINGS[setting]
    model, queries = family_model(name), groups_of(*SETTINGS[setting])
    budget = 0.2 if setting == "groups" else 0.1
    config = S2FTConfig(budget=budget, roles=roles, layout=layout, strategy=strategy, keep=keep)
    selection = select_channels(model, config, calibration=batches)
    found = chosen_units(selection, model, name, roles, queries)
    if strategy == "weight":
        norms = weight_norms(model, name, roles, queries)
    elif strategy == "gradient":
        norms = gradient_norms(model, name, roles, queries, batches)
    else:
        norms = activation_norms(model, name, roles, queries, batches)
        norms = norms if strategy == "activation" else multiply(norms, weight_norms(model, name, roles, queries))
    for sides, values in zip(found, norms, strict=True):
        for units, scores in zip(sides, values, strict=True):
            order = sorted(range(len(scores)), key=scores.__getitem__, reverse=keep == "largest")
            assert 0 < len(units) < len(scores)
            assert units == sorted(order[: len(units)])


# -- seeds


def test_random_follows_the_seed(llama):
    configs = [S2FTConfig(budget=0.1, seed=seed) for seed in (0, 0, 1, 2)]
    first, again, *others = [select_channels(llama, config).channels for config in configs]
    assert first == again
    assert all(first != other for other in others)
    downs = [channels for name, channels in first.items() if name.endswith("down_proj")]
    assert len(set(downs)) == len(downs) == 3
    other_weights = tiny("llama", seed=4)
    state = torch.get_rng_state()
    assert select_channels(other_weights, configs[0]).channels == first
    assert torch.equal(torch.get_rng_state(), state)


def test_random_reaches_every_unit(llama):
    seen = {"o_proj": set(), "down_proj": set()}
    for seed in range(60):
        for name, channels in select_channels(llama, S2FTConfig(budget=0.05, seed=seed)).channels.items():
            seen[name.rpartition(".")[2]] |= set(channels)
    assert seen == {"o_proj": set(range(32)), "down_proj": set(range(48))}


# -- budgets


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


# -- budgets by spectra


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


# -- selections that share nothing


def of(selection, end):
    return {name: set(channels) for name, channels in selection.channels.items() if name.endswith(end)}


@pytest.mark.parametrize("strategy", ["random", "weight"])
@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_excluded_channels_are_not_chosen(llama, strategy, layout):
    made = []
    for seed in range(2 if layout == "permuted" else 3):
        config = S2FTConfig(budget=0.06, strategy=strategy, seed=seed, layout=layout)
        made.append(select_channels(llama, config, exclude=made))
    for a, b in ((a, b) for a in made for b in made if a is not b):
        assert a.channels.keys() == b.channels.keys()
        assert not any(set(a.channels[name]) & set(b.channels[name]) for name in a.channels)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("up",), ("down",)),
        (("down",), ("gate", "up")),
        (("q",), ("o",)),
        (("v",), ("o",)),
        (("o",), ("v",)),
        (("k",), ("q",)),
    ],
    ids=str,
)
def test_coupled_channels_are_excluded_too(llama, first, second):
    """Rows of up forbid the columns of down of the same channels; under grouped queries v forbids its heads."""
    width = {"k": 8, "v": 8, "up": 1, "gate": 1, "down": 1, "q": 16, "o": 16}
    one = select_channels(llama, S2FTConfig(budget=0.026, roles=first))
    for seed in range(5):
        two = select_channels(llama, S2FTConfig(budget=0.026, roles=second, seed=seed), exclude=one)
        for block in range(3):
            taken, new = (
                {
                    c // (width[name.split(".")[-1].removesuffix("_proj")])
                    for name, cs in s.channels.items()
                    if f".{block}." in name
                    for c in cs
                }
                for s in (one, two)
            )
            assert taken
            assert new
            if {*first, *second} & {"k", "v", "up", "down"}:
                assert not taken & new


def test_a_head_excludes_its_group_where_groups_are_units(llama):
    one = Selection(S2FTConfig(), {f"model.layers.{b}.self_attn.o_proj": tuple(range(8, 16)) for b in range(3)})
    heads = select_channels(llama, S2FTConfig(budget=0.078, roles=("o",)), exclude=one)
    assert all(channels == (*range(8), *range(16, 32)) for channels in heads.channels.values())
    groups = select_channels(llama, S2FTConfig(budget=0.078, roles=("v", "o")), exclude=one)
    assert set(of(groups, "o_proj").popitem()[1]) == set(range(16, 32))
    assert set(of(groups, "v_proj").popitem()[1]) == set(range(8, 16))


def test_nothing_left_is_said(llama):
    everything = {f"model.layers.{b}.mlp.up_proj": tuple(range(48)) for b in range(3)}
    everything |= {f"model.layers.{b}.self_attn.o_proj": tuple(range(0, 32, 8)) for b in range(3)}
    with pytest.raises(
        ValueError, match=r"exclude must leave heads or channels free for o, down, got selections that hold all\."
    ):
        select_channels(llama, S2FTConfig(), exclude=Selection(S2FTConfig(), everything))
    heads = {name: channels for name, channels in everything.items() if name.endswith("o_proj")}
    with pytest.warns(
        HfFarmsWarning, match="exclude must leave some of o free, got selections that hold all: they are frozen"
    ):
        found = select_channels(llama, S2FTConfig(budget=0.05), exclude=Selection(S2FTConfig(), heads))
    assert all(name.endswith("down_proj") for name in found.channels)


# -- calibration


DATA = pytest.mark.parametrize("strategy", ["activation", "product", "gradient"])


@DATA
def test_strategies_without_their_data(llama, batches, strategy):
    config = S2FTConfig(budget=0.1, strategy=strategy)
    with pytest.raises(ValueError, match=rf"calibration must be given for strategy '{strategy}', got None\. Pass some"):
        select_channels(llama, config)
    with pytest.raises(DataError, match=r"calibration must hold at least one batch, got none\."):
        select_channels(llama, config, calibration=[])
    with pytest.raises(DataError, match="calibration batches must be mappings, as the model takes them, got Tensor"):
        select_channels(llama, config, calibration=[batches[0]["input_ids"]])


def test_gradients_need_a_loss(llama, batches):
    with pytest.raises(DataError, match="calibration batches must give a loss for strategy 'gradient', got none"):
        select_channels(
            llama, S2FTConfig(budget=0.1, strategy="gradient"), calibration=[{"input_ids": batches[0]["input_ids"]}]
        )


@pytest.mark.parametrize("strategy", ["weight", "activation", "gradient"])
def test_numbers_that_are_not_finite(batches, strategy):
    model = tiny("llama")
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"must be finite, got NaN or infinity in model\.layers"):
        select_channels(model, S2FTConfig(budget=0.1, strategy=strategy), calibration=batches)


def test_a_generator_of_batches_is_read_once(llama, batches):
    config = S2FTConfig(budget=0.1, strategy="product")
    assert select_channels(llama, config, calibration=iter(batches)) == select_channels(
        llama, config, calibration=batches
    )


@pytest.mark.parametrize("strategy", ["random", "weight", "activation", "product", "gradient"])
@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
def test_the_model_stays_as_it_is(batches, strategy, fails):
    model = tiny("llama").train()
    model.model.embed_tokens.weight.requires_grad_(False)
    model(**batches[1]).loss.backward()
    before = {n: (p.detach().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()}
    gradients = {n: None if g is None else g.clone() for n, (_, _, g) in before.items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    data = [*batches, {"input_ids": "text"}] if fails else batches
    config = S2FTConfig(budget=0.1, strategy=strategy)
    if fails and config.needs_data:
        with pytest.raises(TypeError, match="must be Tensor, not str"):
            select_channels(model, config, calibration=data)
    else:
        select_channels(model, config, calibration=data)
    for name, parameter in model.named_parameters():
        value, learns, gradient = before[name]
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == learns
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, gradients[name])
        assert not parameter._post_accumulate_grad_hooks
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(module.training for module in model.modules())


@DATA
def test_no_activations_are_kept(batches, strategy):
    """What a layer of one batch saw is gone when the next batch comes."""
    model, seen, alive = tiny("llama"), [], []

    def watch(module, args):
        seen.append(weakref.ref(args[0]))

    handles = [block.mlp.down_proj.register_forward_pre_hook(watch) for block in model.model.layers]

    def data():
        for batch in [*batches, *batches]:
            gc.collect()
            alive.append(sum(ref() is not None for ref in seen))
            yield batch

    select_channels(model, S2FTConfig(budget=0.1, strategy=strategy), calibration=data())
    for handle in handles:
        handle.remove()
    assert len(seen) == 4 * 3
    if strategy == "gradient":  # the last output is named until the next one
        assert max(alive) <= 3
    else:
        assert alive == [0, 0, 0, 0]
        model.train()


@DATA
def test_only_the_gradients_of_trained_weights_are_made(batches, strategy):
    model, made = tiny("llama"), []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: made.append(name))
    select_channels(model, S2FTConfig(budget=0.1, strategy=strategy, roles=("v", "down")), calibration=batches)
    expected = [
        f"model.layers.{b}.{end}" for b in range(3) for end in ("self_attn.v_proj.weight", "mlp.down_proj.weight")
    ]
    assert sorted(set(made)) == (sorted(expected) if strategy == "gradient" else [])
    assert all(p.grad is None for p in model.parameters())


@DATA
def test_dropout_has_no_say(batches, strategy):
    """A model in the middle of a training is measured as it is used."""
    model, norms = family_model("gpt2"), []
    assert model.transformer.h[0].mlp.dropout.p > 0
    config = S2FTConfig(budget=0.1, strategy=strategy)
    coupled = CoupledModel(model, config)
    for training in (False, True):
        model.train(training)
        norms.append(unit_norms(coupled.source, coupled.structures, config, batches))
    assert all(torch.equal(a, b) for pair in zip(*norms, strict=True) for a, b in zip(*pair, strict=True))


def test_padding_has_no_say(llama):
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(3))
    padded = torch.cat([ids, torch.full((2, 6), 7)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 6, dtype=torch.long)], dim=1)
    config = S2FTConfig(budget=0.1, strategy="activation")
    plain = select_channels(llama, config, calibration=[{"input_ids": ids}])
    masked = select_channels(llama, config, calibration=[{"input_ids": padded, "attention_mask": mask}])
    assert masked == plain
    assert select_channels(llama, config, calibration=[{"input_ids": padded}]) != plain


def test_a_block_that_the_data_do_not_reach_is_named(llama, batches):
    llama.model.layers[1].forward = lambda hidden_states, *args, **kwargs: hidden_states
    with pytest.raises(ModelError, match=r"used on the calibration data, got no input in model\.layers\.1\."):
        select_channels(llama, S2FTConfig(budget=0.1, strategy="activation"), calibration=batches)


def test_each_module_keeps_its_own_mode(llama, batches):
    llama.train()
    llama.model.layers[0].mlp.eval()
    select_channels(llama, S2FTConfig(budget=0.1, strategy="activation"), calibration=batches)
    assert [module.training for module in (llama, llama.model.layers[0], llama.model.layers[0].mlp)] == [
        True,
        True,
        False,
    ]
