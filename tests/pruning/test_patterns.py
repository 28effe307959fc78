import pytest
import torch

from hf_farms.pruning.patterns import Removal, lowest, lowest_of_groups, lowest_per_row


def slow_lowest(scores, count):
    """Sort every row by (score, column); then every row's next entry by (score, row)."""
    rows, columns = len(scores), len(scores[0])
    per_row, extra = divmod(count, rows)
    order = [sorted(range(columns), key=lambda j: (row[j], j)) for row in scores]
    gone = {(i, j) for i in range(rows) for j in order[i][:per_row]}
    for i in sorted(range(rows), key=lambda i: (scores[i][order[i][per_row]], i) if extra else 0)[:extra]:
        gone.add((i, order[i][per_row]))
    return gone


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (8, 8), (13, 5), (5, 31)])
@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_equal_the_slow_twin_with_ties(shape, levels, dtype):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, shape, generator=generator).to(dtype)
    for count in {0, 1, scores.numel() // 3, scores.numel() // 2, scores.numel() - 1, scores.numel()}:
        mask = lowest_per_row(scores, count)
        assert mask.sum() == count
        assert {tuple(index) for index in mask.nonzero().tolist()} == slow_lowest(scores.tolist(), count)


def test_rows_differ_by_at_most_one():
    per_row = lowest_per_row(torch.rand(64, 100), 64 * 37 + 20).sum(dim=1)
    assert sorted(set(per_row.tolist())) == [37, 38]
    assert (per_row == 38).sum() == 20


@pytest.mark.parametrize("count", [-1, 13])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=rf"count must be between 0 and 12, got {count}"):
        lowest_per_row(torch.rand(3, 4), count)


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("group", [(2, 4), (0, 4), (1, 2), (3, 8), (5, 7), (1, 28)])
def test_groups_equal_a_loop_over_columns_with_ties(group, levels):
    scores = torch.randint(0, levels, (9, 56), generator=torch.Generator().manual_seed(levels)).float()
    expected = torch.zeros(9, 56, dtype=torch.bool)
    for row in range(9):
        for start in range(0, 56, group[1]):
            order = sorted(range(group[1]), key=lambda j, row=row, start=start: (scores[row, start + j].item(), j))
            for j in order[: group[0]]:
                expected[row, start + j] = True
    assert torch.equal(lowest_of_groups(scores, *group), expected)
    assert torch.equal(Removal(int(expected.sum()), group).mask(scores), expected)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (4, 128)])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_the_lowest_of_a_matrix_with_ties(shape, levels):
    scores = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(levels)).float()
    for count in {0, 1, scores.numel() // 2, scores.numel()}:
        order = sorted(range(scores.numel()), key=lambda i: (scores.flatten()[i].item(), i))[:count]
        expected = torch.zeros(scores.numel(), dtype=torch.bool)
        expected[order] = True
        assert torch.equal(lowest(scores, count).flatten(), expected)


def test_a_cut_without_groups_is_row_by_row():
    scores = torch.rand(5, 20)
    assert torch.equal(Removal(33).mask(scores), lowest_per_row(scores, 33))
