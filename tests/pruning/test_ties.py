"""Kept weights that rounding could exchange for removed ones are counted, and reported by several processes."""

from copy import deepcopy

import pytest
import torch

from hf_farms import PruneConfig, prune
from hf_farms.pruning.methods import pruning_method
from hf_farms.pruning.patterns import ROUNDING, Removal

# Relative size of the last bit of float32.
BIT = 2**-23


class Echo:
    """The first of two processes, of which the other one has the same batches."""

    index, count, device = 0, 2, None

    def gather(self, item):
        return [item, deepcopy(item)]

    def sum_(self, tensor):
        tensor *= 2

    def concatenate(self, part):
        return part


def tied(score, removed):
    return 0 < score <= removed * (1 + ROUNDING)


def slow_ties(scores, mask, removal):
    """Compare each kept score with all that were removed instead of it."""
    rows, columns = scores.shape
    size = removal.group[1] if removal.group else columns
    per_row, extra = divmod(removal.count, rows)
    more = [int(row.sum()) > per_row for row in mask] if extra and removal.group is None else [True] * rows
    ties = 0
    for i in range(rows):
        for j in range(columns):
            others = range(j // size * size, j // size * size + size)
            if not mask[i, j]:
                ties += any(mask[i, k] and tied(float(scores[i, j]), float(scores[i, k])) for k in others)
    for i in range(rows):
        if not more[i]:
            left = min((float(score) for score, gone in zip(scores[i], mask[i], strict=True) if not gone))
            last = max(float(scores[k][mask[k]].max()) for k in range(rows) if more[k])
            ties += tied(left, last)
    return ties


@pytest.mark.parametrize("levels", [1, 3, 40, 100_000])
@pytest.mark.parametrize("removal", [Removal(33), Removal(48), Removal(3), Removal(48, (2, 4)), Removal(0)])
def test_ties_equal_the_slow_twin(levels, removal):
    scores = torch.randint(1, levels + 1, (6, 16), generator=torch.Generator().manual_seed(levels)).float()
    mask = removal.mask(scores)
    ties = removal.ties(scores, mask)
    assert ties == slow_ties(scores, mask, removal)
    assert ties == 0 or removal.count > 0
    assert ties > 0 or removal.count == 0 or levels > 3


@pytest.mark.parametrize(
    ("removal", "values"), [(Removal(403), torch.arange(40) // 2 + 1), (Removal(400, (2, 4)), [1, 2, 2, 3] * 10)]
)
def test_a_last_bit_changes_the_mask_only_where_there_are_ties(removal, values):
    generator = torch.Generator().manual_seed(5)
    last_bits = 1 + BIT * torch.randint(0, 2, (20, 40), generator=generator)
    untied = torch.arange(1.0, 801)[torch.randperm(800, generator=generator)].view(20, 40)
    assert removal.ties(untied, removal.mask(untied)) == 0
    assert torch.equal(removal.mask(untied * last_bits), removal.mask(untied))
    twice = torch.as_tensor(values).float().repeat(20, 1)
    others = removal.mask(twice * last_bits) & ~removal.mask(twice)
    assert 0 < others.sum() <= removal.ties(twice, removal.mask(twice))


@pytest.mark.parametrize("method", ["wanda", "ria"])
def test_methods_that_keep_weights_count_them(method):
    weight = torch.tensor([[1.0, 2, 2 * (1 + BIT), 3]])
    for values, count in ((weight, 1), (torch.tensor([[1.0, 2, 4, 3]]), 0), (torch.tensor([[0.0, 0, 0, 3]]), 0)):
        result = pruning_method(method, ranks=Echo()).apply(values, torch.ones(4), Removal(2))
        assert result.num_ties == count


def test_ria_compares_within_the_whole_layer():
    # The same rows: each kept weight of one is tied with one that another lost.
    weight = torch.arange(1.0, 9).repeat(3, 1)
    method = pruning_method("ria", ranks=Echo())
    pruned = method.apply(weight, torch.ones(8), Removal(10))
    assert int((pruned.weight == 0).sum(dim=1).max()) == 4
    assert pruned.num_ties == 2


@pytest.mark.parametrize("repeated", [True, False])
def test_several_processes_report_them(llama, ids, repeated):
    if repeated:
        with torch.no_grad():
            for layer in llama.model.layers:
                layer.mlp.up_proj.weight[1] = layer.mlp.up_proj.weight[0]
                layer.mlp.up_proj.weight[2:] = layer.mlp.up_proj.weight[0]
    # Rows of one more and one less zero.
    config = PruneConfig(sparsity=0.51, allocation="uniform")
    alone = prune(deepcopy(llama), config, calibration=ids).report
    shared = prune(llama, config, calibration=ids, ranks=Echo()).report
    assert alone.num_ties is None
    assert bool(shared.num_ties) == repeated
    assert not any("but for rounding" in note for note in alone.notes)
    notes = [note for note in shared.notes if "were kept with the score of a removed one, but for rounding" in note]
    assert [note.split()[0] for note in notes] == ([f"{shared.num_ties:,}"] if repeated else [])


@pytest.mark.parametrize("options", [{"method": "magnitude"}, {"method": "sparsegpt"}, {"refine": "swaps"}])
def test_where_more_or_less_than_scores_of_calibration_data_decides_nothing_is_counted(options):
    config = PruneConfig(**options)
    assert pruning_method(config.method, config, ranks=Echo()).ties is None
