"""One byte per weight holds the masks of all levels."""

import pytest
import torch

from hf_farms import PruneConfig
from hf_farms.blocks import ModelBlockSource
from hf_farms.pruning.magnitude import magnitude
from hf_farms.pruning.wanda import wanda
from hf_farms.search.grid import Grid
from hf_farms.search.levels import NEVER, build_codes, code_method, level_codes, level_removal


def config(pattern="unstructured", **changes):
    return PruneConfig(allocation="uniform", pattern=pattern, **changes)


@pytest.mark.parametrize("pattern", ["unstructured", "N:8"])
@pytest.mark.parametrize("method", [wanda, magnitude])
def test_codes_are_the_masks_of_the_method_at_every_level(source, pattern, method):
    grid = Grid.of(source, config(pattern))
    # Few distinct values, so that many scores tie.
    weight = torch.randint(1, 6, (13, 24), generator=torch.Generator().manual_seed(0)).float()
    prepared = torch.arange(1.0, 25.0) if method is wanda else None
    codes = level_codes(weight, method, prepared, grid)
    for level in range(1, grid.top + 1):
        pruned = method(weight, prepared, level_removal(weight.numel(), level, grid))
        assert torch.equal(codes <= level, pruned == 0), level


def test_a_method_that_takes_no_mask_is_called_at_every_level(source):
    def columns(weight, prepared, removal):
        return weight * (torch.arange(weight.shape[1]) >= removal.count // weight.shape[0])

    grid = Grid.of(source, config("N:8"))
    codes = level_codes(torch.ones(2, 8), columns, None, grid)
    assert codes[0].tolist() == [1, 2, 3, 4, 5, 6, 7, NEVER]


def test_codes_use_dense_activations_and_may_lie_in_files(model, source, calibration, tmp_path):
    grid = Grid.of(source, config())
    stages = []
    kept = build_codes(source, grid, method="wanda", batches=calibration)
    mapped = build_codes(
        source,
        grid,
        method="wanda",
        batches=calibration,
        folder=tmp_path / "codes",
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert stages[-1] == ("levels (0.0 MB on disk)", 3, 3)
    for index in range(3):
        assert all(torch.equal(one, other) for one, other in zip(kept[index], mapped[index], strict=True))
    assert (tmp_path / "codes" / "0.codes").stat().st_size == grid.sizes[0]
    norms = []
    hook = model.model.layers[2].mlp.down_proj.register_forward_pre_hook(
        lambda _module, args: norms.append(args[0].detach().reshape(-1, 48))
    )
    with torch.no_grad():
        for batch in calibration:
            model(**batch)
    hook.remove()
    weight = model.model.layers[2].mlp.down_proj.weight.detach()
    scores = weight.abs() * torch.cat(norms).square().mean(dim=0).sqrt()
    removed = scores.argsort(dim=1)[:, :24]
    assert torch.equal(kept[2][-1] <= 100, torch.zeros_like(weight).scatter_(1, removed, 1).bool())


def test_magnitude_runs_no_block(model, calibration):
    source = ModelBlockSource(model)
    source.capture = None
    codes = build_codes(source, Grid.of(source, config()), method="magnitude", batches=calibration)
    assert len(codes) == 3


def test_a_method_that_changes_kept_weights_is_searched_on_masks_of_wanda():
    assert (code_method("sparsegpt"), code_method("magnitude")) == ("wanda", "magnitude")
