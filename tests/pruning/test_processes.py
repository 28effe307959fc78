"""Pruning on two processes, which share calibration batches and rows: the same weights as on one."""

import pytest
import torch
from launch import results_of
from shared_pruning import CASES, FEW, batches, pruned

from hf_farms import PruneConfig
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import HfFarmsError, HfFarmsWarning
from hf_farms.pruning.searching import search_sparsities
from hf_farms.pruning.sharing import finished_blocks

SCRIPT = """
import sys, warnings
import torch
from shared_pruning import CASES, FEW, batches, pruned

from hf_farms import PruneConfig
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import HfFarmsError, HfFarmsWarning
from hf_farms.pruning.searching import search_sparsities
from hf_farms.pruning.sharing import finished_blocks
from hf_farms.errors import HfFarmsWarning
from hf_farms.processes import working_ranks
folder, ranks = sys.argv[1], working_ranks()
results, messages = {}, []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in CASES:
        results[name] = pruned(name, ranks=ranks)
    results["few"] = pruned(FEW, batches()[:1], ranks=ranks)
messages = [str(w.message) for w in caught if issubclass(w.category, HfFarmsWarning)]
torch.save((results, messages), f"{folder}/{ranks.index}.pt")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results_of(SCRIPT, tmp_path_factory.mktemp("two"))


@pytest.mark.filterwarnings("ignore::hf_farms.errors.HfFarmsWarning")
@pytest.mark.parametrize("name", [*CASES, "few"])
def test_two_processes_prune_as_one(two, name):
    (first, blocks), (second, other_blocks) = (results[name] for results, _ in two)
    alone, alone_blocks = pruned(FEW, batches()[:1]) if name == "few" else pruned(name)
    assert blocks == other_blocks
    assert [layer.num_tokens for block in blocks for layer in block.layers] == [
        layer.num_tokens for block in alone_blocks for layer in block.layers
    ]
    assert [block.sparsity for block in blocks] == [block.sparsity for block in alone_blocks]
    for key, weight in alone.items():
        assert torch.equal(first[key], second[key])
        # No score of these random weights is tied.
        assert torch.equal(first[key] == 0, weight == 0)
        assert torch.allclose(first[key], weight, atol=1e-5)
    if CASES.get(name, {}).get("refine"):
        reductions = [[x.error_reduction for b in part for x in b.layers] for part in (blocks, alone_blocks)]
        assert reductions[0] == pytest.approx(reductions[1], abs=1e-4)
        assert max(reductions[0]) > 0


class Second:
    """The second of two processes, which gets what the first one has."""

    index, count = 1, 2

    def __init__(self, first):
        self.first = first

    def gather(self, item):
        return [self.first, item]


def test_the_first_process_searches_for_all(llama):
    with pytest.warns(HfFarmsWarning, match="the search is done by one process, .* the others wait"):
        # Its own search would refuse that there is nothing to search on.
        record = search_sparsities(
            ModelBlockSource(llama), PruneConfig(allocation="auto"), [], [], ranks=Second("the record")
        )
    assert record == "the record"


def test_blocks_that_not_all_processes_can_read_are_refused(llama):
    with pytest.raises(HfFarmsError, match="readable by all processes, got 0 in process 1 and 1 in process 0"):
        finished_blocks(ModelBlockSource(llama), Second([{"index": 0}, None, None]))


def test_what_cannot_be_shared_is_said(two):
    for _, messages in two:
        assert sum(m.startswith("recovery is done by one process") for m in messages) == 2
        assert [m for m in messages if "at most as many as calibration batches, got 2 for 1: the others" in m]
