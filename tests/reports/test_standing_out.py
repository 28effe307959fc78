import json
import math
import random
from dataclasses import replace

import pytest
from reports import layer

from hf_farms.config import FarmsConfig
from hf_farms.reports import BlockSpectrum, SpectralReport
from hf_farms.reports.standing_out import (
    CAVEAT,
    HEALTHY_SPREAD,
    MIN_BLOCKS,
    find_standing_out,
    standing_out_of,
    studentized,
    threshold,
)

HEALTHY = [1.79, 1.68, 1.66, 1.67, 1.65, 1.64, 1.63, 1.60]


def blocks(alphas, stderr=0.012, name="model.layers.{}"):
    return [
        BlockSpectrum(index=i, name=name.format(i), alpha=alpha, alpha_stderr=stderr, layers=())
        for i, alpha in enumerate(alphas)
    ]


def outliers(alphas, **options):
    return sorted(find_standing_out(blocks(alphas, **options), FarmsConfig()).indices)


def with_alphas(**changes):
    """The healthy alphas with others at some positions, such as `b3=2.1`."""
    return [changes.get(f"b{i}", alpha) for i, alpha in enumerate(HEALTHY)]


def test_nothing_stands_out_of_a_healthy_model():
    result = find_standing_out(blocks(HEALTHY), FarmsConfig())
    assert (result.blocks, result.reason) == ((), None)
    assert result.threshold == pytest.approx(threshold(6), abs=1e-3)
    assert result.sentence == (
        "No block stands out: no alpha is higher than the others by more than chance (the first and last block are "
        f"not judged). {CAVEAT}"
    )


@pytest.mark.parametrize("positions", [[1], [3], [6], [3, 5], [1, 2], [5, 6], [1, 6]])
def test_one_or_two_of_six_inner_blocks_are_found(positions):
    result = find_standing_out(blocks(with_alphas(**{f"b{i}": 2.1 for i in positions})), FarmsConfig())
    assert [block.index for block in result.blocks] == positions
    assert [block.name for block in result.blocks] == [f"model.layers.{i}" for i in positions]
    assert all(block.residual > result.threshold for block in result.blocks)


def test_the_sentence_names_the_blocks():
    one = find_standing_out(blocks(with_alphas(b3=2.1)), FarmsConfig()).sentence
    assert one.startswith(
        "Block 3 stands out: its alpha is higher than the others by more than chance, a sign of less "
    )
    two = find_standing_out(blocks(with_alphas(b3=2.1, b5=2.1)), FarmsConfig()).sentence
    assert two.startswith("Blocks 3 and 5 stand out: their alphas are higher")
    many = find_standing_out(blocks([*HEALTHY, *HEALTHY[1:], 2.2, 2.2, 2.2, 1.6]), FarmsConfig()).sentence
    assert many.startswith("Blocks 15, 16 and 17 stand out")
    assert all(sentence.endswith(f"(the first and last block are not judged). {CAVEAT}") for sentence in (one, two))


def test_blocks_that_do_not_count_from_0_are_named():
    measured = blocks(with_alphas(b3=2.1, b5=2.1))
    from_1 = [replace(block, name=f"layer{block.index + 1}") for block in measured]
    assert find_standing_out(from_1, FarmsConfig()).sentence.startswith("Blocks layer4 and layer6 stand out: their")
    from_10 = [replace(block, name=f"layers.{block.index + 10}") for block in measured]
    assert find_standing_out(from_10, FarmsConfig()).sentence.startswith("Blocks layers.13 and layers.15 stand out")


@pytest.mark.parametrize("alpha", [1e155, 1.7e308])
def test_huge_alphas_do_not_overflow(alpha):
    assert outliers(with_alphas(b3=alpha)) == [3]
    assert outliers(with_alphas(b2=alpha, b3=alpha, b4=alpha)) == []


def test_the_first_and_last_block_are_neither_judged_nor_part_of_the_fit():
    assert outliers(with_alphas(b0=3.0, b7=3.0)) == []
    extreme = [9.0, *with_alphas(b3=2.1)[1:-1], 0.1]
    assert find_standing_out(blocks(extreme), FarmsConfig()) == find_standing_out(
        blocks(with_alphas(b3=2.1)), FarmsConfig()
    )


def test_a_lower_alpha_does_not_stand_out():
    assert outliers(with_alphas(b3=1.2)) == []


@pytest.mark.parametrize("shift", [-0.4, 0.0, 3.0])
def test_a_shift_of_all_alphas_changes_nothing(shift):
    errors = [0.01] * 6
    shifted = [alpha + shift for alpha in with_alphas(b3=2.1)[1:-1]]
    assert studentized(shifted, errors) == pytest.approx(studentized(with_alphas(b3=2.1)[1:-1], errors))


@pytest.mark.parametrize("scale", [5.0, 40.0])
def test_above_the_smallest_spread_a_scale_of_all_alphas_changes_nothing(scale):
    alphas = [0.1, -0.2, 0.15, 1.5, -0.05, 0.0]
    scaled = studentized([scale * alpha for alpha in alphas], [scale * 0.01] * 6)
    assert scaled == pytest.approx(studentized(alphas, [0.01] * 6))


def test_the_order_of_the_inner_blocks_does_not_matter():
    inner = with_alphas(b3=2.1, b5=2.0)[1:-1]
    random.Random(0).shuffle(inner)
    assert outliers([1.8, *inner, 1.6]) == sorted(1 + inner.index(alpha) for alpha in (2.1, 2.0))


def test_scatter_below_the_smallest_spread_is_not_studied_more_closely():
    alphas = [1.7, 1.65, 1.65, 1.65, 1.65, 1.65, 1.65 + HEALTHY_SPREAD, 1.6]
    assert outliers(alphas, stderr=0.0) == []
    line = [1.6 + 0.001 * i for i in range(8)]
    assert outliers(line, stderr=0.0) == []


def test_a_large_error_of_its_own_excuses_a_block():
    assert outliers(with_alphas(b3=2.0)) == [3]
    imprecise = blocks(with_alphas(b3=2.0))
    imprecise[3] = replace(imprecise[3], alpha_stderr=0.2)
    assert find_standing_out(imprecise, FarmsConfig()).blocks == ()


@pytest.mark.parametrize("count", [4, 5, 6, 8, 9, 13, 28])
def test_false_alarms_under_the_null_are_rare_for_every_number_of_blocks(count):
    draw = random.Random(count)
    models = 600
    for spread, expected in ((0.5 * HEALTHY_SPREAD, 0.01), (10 * HEALTHY_SPREAD, 0.05)):
        alarms = 0
        for _ in range(models):
            alphas = [draw.gauss(2.0, spread) for _ in range(count)]
            alarms += max(studentized(alphas, [0.0] * count)) > threshold(count)
        assert alarms / models < expected + 3 * math.sqrt(expected * (1 - expected) / models)


def without(index, **changes):
    changed = blocks(HEALTHY)
    changed[index] = replace(changed[index], **changes)
    return changed


BAD = {
    "no block": ([], {}, f"the model has 0 blocks, and at least {MIN_BLOCKS} are needed"),
    "one block": (blocks([1.7]), {}, f"the model has 1 block, and at least {MIN_BLOCKS} are needed"),
    "few blocks": (blocks(HEALTHY[: MIN_BLOCKS - 1]), {}, f"5 blocks, and at least {MIN_BLOCKS} are needed"),
    "no alpha": (without(3, alpha=None, alpha_stderr=None), {}, "model.layers.3 has no alpha"),
    "no layers": (
        [replace(block, layers=(layer(),) if block.alpha else ()) for block in without(3, alpha=None)],
        {},
        "model.layers.3 has no alpha",
    ),
    "no error": (
        without(3, alpha_stderr=None),
        {},
        "model.layers.3 was measured on one window per layer, which has no",
    ),
    "equal": (blocks([1.7] * 8), {}, "all alphas are equal"),
    "whole matrices": (
        blocks(HEALTHY, None),
        {"window_rows": None},
        "alphas of whole matrices have no standard errors",
    ),
    "other fit": (blocks(HEALTHY), {"fit": "peak"}, "known for the default measurement only, not for fit 'peak'"),
    "two stacks": (
        blocks(HEALTHY[:4], name="encoder.block.{}") + blocks(HEALTHY[4:], name="decoder.block.{}"),
        {},
        "the model has several stacks of blocks (encoder.block, decoder.block)",
    ),
    "stages": (
        blocks(HEALTHY[:4], name="stages.0.layers.{}") + blocks(HEALTHY[4:], name="stages.1.layers.{}"),
        {},
        "the model has several stacks of blocks (stages.0.layers, stages.1.layers)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_where_nothing_can_be_said_one_sentence_says_why(case):
    measured, options, reason = BAD[case]
    result = find_standing_out(measured, FarmsConfig(**options))
    assert (result.blocks, result.threshold) == ((), None)
    assert reason in result.reason
    assert result.sentence == f"Nothing can be said about blocks that stand out: {result.reason}."


def with_role(role):
    """Healthy blocks of which every second has a layer of another role."""
    up, other = (replace(layer(), role=name) for name in ("up", role))
    return [replace(block, layers=(up, other) if i % 2 else (up,)) for i, block in enumerate(blocks(HEALTHY))]


def test_blocks_with_other_layers_do_not_compare():
    assert "different kinds of layers" in find_standing_out(with_role("linear"), FarmsConfig()).sentence
    assert find_standing_out(with_role("router"), FarmsConfig()).reason is None


def report(alphas):
    measured = tuple(blocks(alphas))
    return SpectralReport(model="m", model_type="llama", config=FarmsConfig(), window_rows=12, blocks=measured)


def test_the_json_has_the_blocks_and_the_sentence():
    measured = report(with_alphas(b3=2.1))
    complete = replace(measured, standing_out=standing_out_of(measured))
    assert SpectralReport.from_json(complete.to_json()) == complete
    data = json.loads(complete.to_json())["standing_out"]
    assert [block["index"] for block in data["blocks"]] == [3]
    assert data["sentence"] == complete.standing_out.sentence


def test_a_report_without_the_field_is_read_and_judged():
    data = json.loads(report(with_alphas(b3=2.1)).to_json())
    del data["standing_out"]
    earlier = SpectralReport.from_json(json.dumps(data))
    assert earlier.standing_out is None
    assert standing_out_of(earlier).indices == {3}


def test_what_was_saved_is_not_judged_again():
    saved = find_standing_out(blocks(with_alphas(b3=2.1)), FarmsConfig())
    assert standing_out_of(replace(report(HEALTHY), standing_out=saved)) is saved


def test_many_blocks_far_above_the_others_hide_nothing_in_silence():
    two_of_five = [1.76, 1.69, 1.73, 2.08, 1.78, 2.09, 1.77]
    result = find_standing_out(blocks(two_of_five), FarmsConfig())
    assert result.reason == "2 of the 5 inner blocks lie far above the others, too many for a comparison"
    assert result.blocks == ()
    # Two of six are found.
    assert find_standing_out(blocks([*two_of_five, 1.79]), FarmsConfig()).indices == {3, 5}


def test_models_deeper_than_the_calibrated_ones_say_so():
    deep = find_standing_out(blocks([*HEALTHY, *HEALTHY[1:]]), FarmsConfig()).sentence
    assert "; the limit comes from models of up to 10 blocks)" in deep
    assert "the limit comes from" not in find_standing_out(blocks(HEALTHY), FarmsConfig()).sentence
