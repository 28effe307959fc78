"""Which units are chosen, against norms that are written out unit by unit."""

import gc
import weakref

import pytest
import torch
from families import family_model
from models import tiny
from s2ft_units import SETTINGS, activation_norms, chosen_units, gradient_norms, groups_of, multiply, weight_norms

from hf_farms import S2FTConfig, select_channels
from hf_farms.errors import DataError, HfFarmsWarning, ModelError
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.selection import Selection
from hf_farms.s2ft.unit_norms import unit_scores


@pytest.fixture
def batches(ids):
    ids = [ids[0], ids[1][None]]
    return [{"input_ids": tokens, "labels": tokens} for tokens in ids]


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


# -- selections that share nothing


def of(selection, end):
    return {name: set(channels) for name, channels in selection.channels.items() if name.endswith(end)}


@pytest.mark.parametrize("strategy", ["random", "weight"])
@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_excluded_channels_are_not_chosen(llama, strategy, layout):
    made = []
    for seed in range(2 if layout == "permuted" else 3):
        seeds = {"seed": seed} if strategy == "random" else {}
        config = S2FTConfig(budget=0.06, strategy=strategy, layout=layout, **seeds)
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
    data = [*batches, {"inputs_embeds": "text"}] if fails else batches
    config = S2FTConfig(budget=0.1, strategy=strategy)
    if fails and config.needs_data:
        with pytest.raises(AttributeError, match="'str' object has no attribute"):
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
        norms.append(unit_scores(coupled, batches))
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
