"""A total or a spread that `max_sparsity` does not leave room for: the block that binds is named."""

import pytest

from hf_farms import PruneConfig, prune
from hf_farms.errors import HfFarmsWarning

NAME = r"model\.layers\.2"


def run(model, **options):
    return prune(model, PruneConfig(method="magnitude", allocation="ramp", **options)).report


def test_a_total_at_the_limit_leaves_no_room_and_the_first_block_to_bind_is_named(llama):
    sentence = (
        rf"`max_sparsity=0.6` leaves no room above the total sparsity of 0.7: it binds first in {NAME}, which would "
        r"get 0.77, and no block gets more than the total\."
    )
    with pytest.warns(HfFarmsWarning, match=f"^{sentence}$"):
        report = run(llama, sparsity=0.7, max_sparsity=0.6)
    assert any(note.startswith("`max_sparsity=0.6` leaves no room") for note in report.notes)
    assert [block.target for block in report.blocks] == pytest.approx([0.7] * 3)


def test_a_block_at_the_limit_is_noted_and_the_total_met(llama):
    report = run(llama, sparsity=0.6, spread=0.3, max_sparsity=0.65)
    assert report.notes == (
        "`max_sparsity=0.65` binds in 1 of 3 blocks, first in model.layers.2, which would get 0.78: the difference is "
        "removed from the others. A smaller `spread` avoids this.",
    )
    assert report.sparsity == pytest.approx(0.6, abs=1e-4)
    assert report.blocks[2].target == 0.65


@pytest.mark.parametrize(
    ("sparsity", "limit", "targets"), [(0.6, 0.7, (0.4, 0.7, 0.7)), (0.8, 0.95, (0.5, 0.95, 0.95))]
)
def test_of_blocks_that_would_get_everything_the_one_that_wants_most_is_named(llama, sparsity, limit, targets):
    # 1.9, 1 and 0.1 times the sparsity, before the last one is cut and the others get more.
    report = run(llama, sparsity=sparsity, spread=0.9, max_sparsity=limit)
    assert [block.target for block in report.blocks] == pytest.approx(targets)
    assert "binds in 2 of 3 blocks, first in model.layers.2, which would get 1 or more: " in report.notes[0]


def test_blocks_that_stay_dense_are_named(llama, ids):
    config = PruneConfig(method="magnitude", allocation="owl", ends="measured", sparsity=0.1, spread=0.9)
    report = prune(llama, config, calibration=ids).report
    targets = [block.target for block in report.blocks]
    dense = [block.name for block in report.blocks if block.target == 0]
    assert dense
    assert report.notes == (
        f"The spread leaves {len(dense)} of 3 blocks dense, such as {dense[0]}, as no sparsity is below 0: sparsities "
        f"differ by at most {max(targets):.4g}. A smaller `spread` avoids this.",
    )


def test_roles_are_named_too(llama, ids):
    config = PruneConfig(
        method="magnitude", allocation="dlp", granularity="layer", ends="measured", max_sparsity=0.55, spread=0.4
    )
    report = prune(llama, config, calibration=ids).report
    (note,) = report.notes
    assert " of 21 roles of blocks, first in model.layers." in note
    assert "), which would get 0." in note
    assert all(layer.target <= 0.55 for block in report.blocks for layer in block.layers)


def test_no_note_where_nothing_binds(llama):
    assert run(llama, sparsity=0.7, max_sparsity=0.6, spread=0).notes == ()


def test_a_spread_below_the_limit_is_not_noted(llama):
    assert run(llama, sparsity=0.5, max_sparsity=0.56).notes == ()
