"""KL of several plans in one pass: the plain twin prunes a copy and runs both models."""

import copy

import pytest
import torch
from models import tiny_bert

from hf_farms import PruneConfig
from hf_farms.blocks import Block, BlockCall, ModelBlockSource
from hf_farms.blocks.arguments import OutputForm
from hf_farms.errors import ModelError
from hf_farms.loading.opening import load_model
from hf_farms.metrics.divergence import divergences
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.search import evaluation
from hf_farms.search.evaluation import LossSums, loss_sums, mean_losses, plan_losses
from hf_farms.search.grid import Grid
from hf_farms.search.levels import build_codes

PLANS = [(100, 0, 0), (0, 100, 100), (60, 100, 140), (0, 0, 0), (60, 100, 80)]


@pytest.fixture
def codes(source, calibration):
    grid = Grid.of(source, PruneConfig(allocation="uniform"))
    return build_codes(source, grid, method="wanda", batches=calibration)


@pytest.fixture
def batches():
    padded = torch.randint(0, 100, (2, 21), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(padded)
    mask[1, 15:] = 0
    return [
        {"input_ids": torch.randint(0, 100, (1, 13), generator=torch.Generator().manual_seed(4))},
        {"input_ids": padded, "attention_mask": mask},
    ]


@torch.no_grad()
def plain_loss(model, codes, plan, batches):
    pruned = copy.deepcopy(model)
    source = ModelBlockSource(pruned)
    for index, level in enumerate(plan):
        for layer, code in zip(prunable_layers(source.open(index).layers), codes[index], strict=True):
            layer.write_(layer.read() * (code > level))
    total = tokens = 0
    for batch in batches:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        p = model(**batch).logits.double().log_softmax(dim=-1)
        q = pruned(**batch).logits.double().log_softmax(dim=-1)
        total += float((p.exp() * (p - q)).sum(dim=-1)[mask].sum())
        tokens += int(mask.sum())
    return total / tokens


@pytest.mark.parametrize("small", [False, True])
def test_losses_are_those_of_pruned_copies(model, source, codes, batches, small, monkeypatch):
    if small:
        # One batch per pass over the blocks, and a few tokens per product of the head.
        monkeypatch.setattr("hf_farms.search.evaluation.HIDDEN_BYTES", 1)
        monkeypatch.setattr("hf_farms.metrics.divergence.LOGIT_BYTES", 4 * 100 * 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = plan_losses(source, codes, PLANS, batches)
    assert losses == pytest.approx([plain_loss(model, codes, plan, batches) for plan in PLANS], rel=1e-4, abs=1e-6)
    assert losses[3] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_sums_of_groups_of_batches_add_up(source, codes, batches):
    together = loss_sums(source, codes, PLANS, batches)
    first, second = (loss_sums(source, codes, PLANS, [batch]) for batch in batches)
    assert together.num_tokens == first.num_tokens + second.num_tokens == 13 + 21 + 15
    added = LossSums([a + b for a, b in zip(first[0], second[0], strict=True)], together.num_tokens)
    assert mean_losses(added) == pytest.approx(mean_losses(together), rel=1e-5)


def test_weights_are_restored_after_an_error(model, source, codes, batches):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def interrupt(*_):
        raise KeyboardInterrupt("as Ctrl-C does")

    source.check_chain(batches[0])
    hook = model.model.layers[1].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        plan_losses(source, codes, PLANS, batches)
    hook.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_blocks_that_share_a_prefix_run_once(model, source, codes, batches):
    runs = []
    source.check_chain(batches[0])
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    plan_losses(source, codes, [(0, 0, level) for level in (50, 100, 150)], batches[:1])
    hook.remove()
    assert len(runs) == 1


def test_a_streamed_model_has_the_same_losses(model, codes, batches, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, stream=True, tokenizer=False)
    opened = []
    open_block, loaded.source.open = loaded.source.open, lambda index: opened.append(index) or open_block(index)
    loaded.source.check_chain(batches[0])
    opened.clear()
    losses = plan_losses(loaded.source, codes, PLANS, batches)
    assert opened == [0, 1, 2]
    assert losses == plan_losses(ModelBlockSource(model), codes, PLANS, batches)


def test_predictions_that_are_not_finite(source, batches):
    hidden = torch.zeros(1, 13, 32)
    broken = {"pruned": torch.full_like(hidden, torch.nan), "same": hidden}
    assert divergences(source, batches[0], hidden, broken) == {"pruned": torch.inf, "same": 0}
    with pytest.raises(ModelError, match=r"predictions must be finite, got NaN or infinity"):
        divergences(source, batches[0], broken["pruned"], {"same": hidden})


def test_models_without_a_head_are_refused():
    source = ModelBlockSource(tiny_bert())
    with pytest.raises(ModelError, match=r"the KL to the dense model must be measured on a causal language model"):
        plan_losses(source, None, [(0, 0, 0)], [])


def test_arguments_that_a_block_passes_on_belong_to_one_state():
    class Passing(torch.nn.Module):
        def forward(self, hidden, passed=0):
            return hidden + passed, 10 * hidden

    form = OutputForm(place=0, output=None)
    last = BlockCall(args=[0], kwargs={}, by_name=False, form=form)
    first = BlockCall(args=[], kwargs={}, by_name=False, form=form, forwarded=[(last, 0, 1)])
    block = Block(metadata=None, module=Passing(), layers=())
    before = [evaluation._State(torch.tensor(value)) for value in (1.0, 2.0)]
    between = [evaluation._step(block, state, (first,)) for state in before]
    after = [evaluation._step(block, state, (last,)).hidden for state in between]
    assert [float(hidden) for hidden in after] == [11, 22]
