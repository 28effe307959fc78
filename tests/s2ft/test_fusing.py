"""fuse: disjoint selections exactly, overlapping ones by a rule; overlap is measured and named."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from families import family_model
from models import tiny
from random_adapters import merged, random_adapter, random_patch

from hf_farms.errors import HfFarmsWarning, ModelError, NoEffectWarning
from hf_farms.registries import COMBINATIONS
from hf_farms.s2ft.adapters.fusing import fuse, overlaps
from hf_farms.s2ft.adapters.patches import S2FTAdapter

DOWN = "model.layers.1.mlp.down_proj.weight"
OVERLAP = pytest.mark.filterwarnings("ignore:adapters overlap")
ALL = ("q", "k", "v", "o", "gate", "up", "down")
# The adapters of these tests name no base model.
pytestmark = pytest.mark.filterwarnings("ignore:the base of . of the . adapters cannot be checked")
LARGEST = ("magnitude_prune", "ties")


def disjoint(model, number=3, **options):
    adapters = []
    for seed in range(number):
        adapters.append(random_adapter(model, seed, exclude=tuple(adapters), **options))
    return adapters


def changes(model, adapter):
    """The change of every parameter as a whole matrix in float64: the slow twin works on these."""
    result = {}
    for patch in adapter.patches.values():
        weight = model.get_parameter(patch.name).detach()
        result[patch.name] = weight.index_copy(patch.dim, patch.indices, patch.values).double() - weight.double()
    return result


def on_one_weight(model, *indices, **options):
    generator = torch.Generator().manual_seed(7)
    common = {"side": "inputs", "scale": 0.1, "generator": generator, **options}
    return [S2FTAdapter(patches={DOWN: random_patch(model, DOWN, indices=own, **common)}) for own in indices]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("combination", ["linear", "cat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_disjoint_selections_are_fused_exactly(family, combination, dtype):
    model = family_model(family).to(dtype)
    adapters = disjoint(model, roles=ALL)
    with warnings.catch_warnings(action="error"):
        fused = fuse([replace(adapter, base_model="ada/base") for adapter in adapters], combination=combination)
    assert set(overlaps(adapters).values()) == {0.0}
    one_after_another, at_once = family_model(family).to(dtype), family_model(family).to(dtype)
    for adapter in adapters:
        merged(one_after_another, adapter)
    expected = one_after_another.state_dict()
    fused.merge(at_once)
    assert all(torch.equal(value, expected[name]) for name, value in at_once.state_dict().items())
    fused.unmerge(at_once)
    assert all(torch.equal(value, at_once.state_dict()[name]) for name, value in model.state_dict().items())


@OVERLAP
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.25]])
@pytest.mark.parametrize("combination", ["linear", "cat"])
def test_overlapping_channels_are_the_weighted_mean_or_sum(llama, weights, combination):
    adapters = [random_adapter(llama, seed, channels=(10, 20), roles=ALL) for seed in range(3)]
    fused = fuse(adapters, weights=weights, combination=combination)
    parts, found = [changes(llama, adapter) for adapter in adapters], changes(llama, fused)
    shared = 0
    for name, patch in fused.patches.items():
        expected, divisor = torch.zeros(patch.shape).double(), torch.zeros(patch.shape).double()
        count = torch.zeros(patch.shape)
        for weight, part, adapter in zip(weights or [1, 1, 1], parts, adapters, strict=True):
            expected += weight * part[name]
            own = torch.zeros(patch.shape).index_fill(patch.dim, adapter.patches[name].indices, 1)
            divisor, count = divisor + weight * own, count + own
        shared += int((count > 1).sum())
        if combination == "linear":
            expected = torch.where(count > 1, expected / divisor, expected)
        assert torch.allclose(found[name], expected, rtol=0, atol=1e-7)
        assert patch.indices.tolist() == sorted({i for a in adapters for i in a.patches[name].indices.tolist()})
    assert shared > 100


@OVERLAP
@pytest.mark.parametrize("combination", ["linear", "cat", "magnitude_prune", "ties"])
def test_the_order_of_adapters_does_not_matter(llama, combination):
    adapters = [random_adapter(llama, seed, channels=(10, 20), blocks=[seed, 2]) for seed in range(3)]
    weights, options = [0.5, 2.0, 0.25], {"density": 0.5} if combination in LARGEST else {}
    first = fuse(adapters, weights=weights, combination=combination, **options)
    for order in itertools.permutations(range(3)):
        again = fuse(
            [adapters[i] for i in order], weights=[weights[i] for i in order], combination=combination, **options
        )
        assert list(again.patches) == list(first.patches)
        for name, patch in again.patches.items():
            assert torch.equal(patch.values, first.patches[name].values)
            assert patch.base_fingerprint == first.patches[name].base_fingerprint


@OVERLAP
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
@pytest.mark.parametrize("combination", ["magnitude_prune", "ties", "dare_linear", "dare_ties"])
def test_the_rules_are_those_of_peft(llama, combination):
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    # PEFT has no notion of absent channels, so all are present here.
    adapters = on_one_weight(llama, range(48), range(48), range(48))
    weights = [0.5, 2.0, 0.25]
    generator = torch.Generator().manual_seed(5)
    tensors = [changes(llama, adapter)[DOWN].mT.contiguous() for adapter in adapters]
    options = {"density": 0.5}
    if combination.startswith("dare"):
        # The same draws: PEFT's are of the global generator.
        options["seed"] = 5
        masks = torch.bernoulli(torch.full((3, 48, 32), 0.5).double(), generator=generator)
        tensors, density = [tensor * mask / 0.5 for tensor, mask in zip(tensors, masks, strict=True)], 1.0
    else:
        density = 0.5
    rule = merge_utils.ties if combination.endswith("ties") else merge_utils.magnitude_prune
    expected = rule(tensors, torch.tensor(weights).double(), density)
    found = changes(llama, fuse(adapters, weights=weights, combination=combination, **options))[DOWN].mT
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)
    assert found.norm() > 0.1


@OVERLAP
def test_random_choices_follow_the_seed(llama):
    adapters = on_one_weight(llama, range(20), range(10, 30))

    def values(**options):
        return fuse(adapters, combination="dare_linear", density=0.3, **options).patches[DOWN].values

    assert torch.equal(values(seed=0), values())
    assert not torch.equal(values(seed=1), values())


@OVERLAP
def test_a_density_keeps_its_share_of_each_adapter(llama):
    adapters = on_one_weight(llama, range(20), range(20, 30))
    fused = fuse(adapters, combination="magnitude_prune", density=0.25)
    change = (fused.patches[DOWN].values - fused.patches[DOWN].base) != 0
    assert change[:, :20].sum() == 0.25 * 20 * 32
    assert change[:, 20:].sum() == 0.25 * 10 * 32
    # Trimmed entries are those of the base, bit for bit.
    whole = fuse(adapters, combination="ties", density=1.0)
    assert torch.equal(whole.patches[DOWN].values, fuse(adapters).patches[DOWN].values)


def test_overlap_is_measured_and_named_once(llama):
    one, other = on_one_weight(llama, range(0, 10), range(5, 20))
    one, other = (replace(adapter, base_model="ada/base") for adapter in (one, other))
    assert overlaps([one, other]) == {DOWN: 0.25}
    with pytest.warns(HfFarmsWarning) as caught:
        fuse([one, other])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(caught[0].message).startswith(
        f"adapters overlap in 25.0% of the fused channels, most in {DOWN} (25.0%), where their changes interfere."
    )


def test_base_model_and_revision_stay_where_all_agree(llama):
    one, other = disjoint(llama, 2, base_model="ada/base", base_revision="abc")
    fused = fuse([one, other])
    assert (fused.base_model, fused.base_revision, fused.selection) == ("ada/base", "abc", None)
    unknown = replace(other, base_model=None, base_revision="def")
    with pytest.warns(HfFarmsWarning, match="the base of 1 of the 2 adapters cannot be checked"):
        assert (fuse([one, unknown]).base_model, fuse([one, unknown]).base_revision) == (None, None)


@OVERLAP
def test_base_slices_are_needed_only_where_something_is_computed(llama):
    one, other = on_one_weight(llama, range(10), range(5, 8))
    without = replace(one, patches={DOWN: replace(one.patches[DOWN], base=None)})
    assert fuse([without]).patches[DOWN] is without.patches[DOWN]
    message = r"adapters must have the base slices .* got one without those of model.layers.1.mlp.down_proj.weight"
    for call in ([without], {"weights": [2.0]}), ([without, other], {}), ([other, without], {"combination": "cat"}):
        with pytest.raises(ValueError, match=message):
            fuse(call[0], **call[1])
    # The other adapter has all that is missing.
    small = replace(other, patches={DOWN: replace(other.patches[DOWN], base=None)})
    assert torch.equal(fuse([one, small]).patches[DOWN].values, fuse([one, other]).patches[DOWN].values)
    wrong = replace(other, patches={DOWN: replace(other.patches[DOWN], base=None, base_fingerprint="0" * 64)})
    with pytest.raises(ModelError, match=r"got different base slices of model.layers.1.mlp"):
        fuse([one, wrong])


def test_unknown_bases_are_named_once(llama):
    one, other = disjoint(llama, 2)
    gpt2 = random_adapter(family_model("gpt2"))
    for pair in ([one, other], [one, gpt2]):
        with pytest.warns(HfFarmsWarning, match="the base of 2 of the 2 adapters cannot be checked, as they") as caught:
            assert fuse(pair).base_model is None
        assert len(caught) == 1
    with warnings.catch_warnings(action="error"):
        fuse([one])
        fuse([replace(one, base_model="a/a"), replace(other, base_model="a/a")])


def test_adapters_of_different_bases(llama):
    one, other = disjoint(llama, 2)
    with pytest.raises(ModelError, match="must have the same base model to be fused, got a/a and b/b"):
        fuse([replace(one, base_model="a/a"), replace(other, base_model="b/b")])
    with pytest.raises(ModelError, match=r"must have the same dtype to be fused, got torch.float32 and torch.bfloat16"):
        fuse([one, random_adapter(tiny("llama", dtype=torch.bfloat16))])
    with pytest.raises(ModelError, match=r"got \(32, 48\) and \(32, 40\) as shapes of model.layers.0.mlp.down_proj"):
        fuse([random_adapter(llama, roles=("down",)), random_adapter(tiny("llama", intermediate_size=40))])
    different = tiny("llama", seed=1)
    with pytest.raises(ModelError, match=r"got different base slices of model.layers.1.mlp.down_proj.weight"):
        fuse([*on_one_weight(llama, range(10)), *on_one_weight(different, range(9, 12))])


def test_different_sides_of_one_weight(llama):
    adapters = [*on_one_weight(llama, range(10)), *on_one_weight(llama, [3], side="outputs")]
    message = r"must patch the same side of a weight to be fused, got inputs and outputs of .*down_proj.weight"
    for call in (fuse, overlaps):
        with pytest.raises(ValueError, match=message):
            call(adapters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, r"weights must be a list of 2 numbers, one for each adapter, got \[1.0\]"),
        ({"weights": 0.5}, r"weights must be a list of 2 numbers, one for each adapter, got 0.5"),
        ({"weights": [1.0, float("nan")]}, "weights must be finite and not 0, got nan"),
        ({"weights": [0, 1]}, "weights must be finite and not 0, got 0"),
        ({"weights": [1.0, -1.0]}, "weights must be positive for 'linear', got -1.0. Pass `combination='cat'`."),
        ({"weights": [1e300, 1.0]}, "weights must keep all values finite in torch.float32, got an overflow in"),
        ({"combination": "svd"}, "combination must be one of linear, cat, magnitude_prune, ties, dare_linear, dare_ti"),
        ({"combination": None}, "combination must be one of linear, .* got None"),
        ({"combination": "ties"}, "density must be over 0 and up to 1 for 'ties', got None"),
        ({"combination": "dare_ties", "density": 0.0}, "density must be over 0 and up to 1 for 'dare_ties', got 0.0"),
        ({"combination": "ties", "density": "half"}, "density must be over 0 and up to 1 for 'ties', got 'half'"),
        ({"combination": "dare_ties", "density": 0.5, "seed": -1}, "seed must be an integer from 0, got -1"),
    ],
)
def test_bad_options(llama, options, message):
    with pytest.raises(ValueError, match=message):
        fuse(disjoint(llama, 2), **options)


@pytest.mark.parametrize("call", [fuse, overlaps])
def test_bad_adapters(llama, call):
    for bad in ([], None, "a", random_adapter(llama)):
        with pytest.raises(ValueError, match="adapters must be a list of at least one S2FTAdapter"):
            call(bad)
    with pytest.raises(ValueError, match=r"adapters must be of S2FTAdapter, got str. Load it first"):
        call(["folder"])


def test_options_without_effect_are_named(llama):
    adapters = disjoint(llama, 2)
    with pytest.warns(NoEffectWarning, match=r"density has no effect with combination 'linear', got 0.5"):
        fuse(adapters, density=0.5)
    with pytest.warns(NoEffectWarning, match="seed has no effect with combination 'ties', got 3"):
        fuse(adapters, combination="ties", density=0.5, seed=3)


def test_negative_weights_take_an_adapter_away(llama):
    one, other = on_one_weight(llama, range(10), range(10, 12))
    fused = fuse([one, other], weights=[1.0, -1.0], combination="cat")
    assert torch.allclose(changes(llama, fused)[DOWN][:, 10:12], -changes(llama, other)[DOWN][:, 10:12], atol=1e-7)


def test_every_combination_has_a_function_and_a_sentence():
    for name, entry in COMBINATIONS.items():
        assert entry.load().__name__ == name
        assert set(entry.options) <= {"density", "seed"}
