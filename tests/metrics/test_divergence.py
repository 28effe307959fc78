"""The loss of a distillation: its twin makes the logits of both models at once."""

import copy

import pytest
import torch
from models import tiny

from hf_farms.blocks import ModelBlockSource
from hf_farms.metrics import divergence
from hf_farms.metrics.divergence import divergence_loss, final_hidden


@pytest.fixture
def batch():
    ids = torch.randint(0, 100, (2, 21), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def pair():
    dense, other = tiny("llama"), tiny("llama")
    for parameter in other.model.layers.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for parameter in other.parameters():
        parameter.requires_grad_(False)
    for parameter in other.model.layers.parameters():
        parameter.requires_grad_(True)
    return dense, other


def twin_loss(dense, other, batch):
    with torch.no_grad():
        p = dense(**batch).logits.double().log_softmax(dim=-1)
    q = other(**batch).logits.double().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)[batch["attention_mask"].bool()].mean()


@pytest.mark.parametrize("parts", [1, 6])
def test_loss_and_gradients_are_those_of_two_whole_models(pair, batch, parts, monkeypatch):
    dense, other = pair
    if parts > 1:
        monkeypatch.setattr(divergence, "LOGIT_BYTES", 4 * 100 * 2 * 4)
    twin = copy.deepcopy(other)
    with torch.no_grad():
        target = final_hidden(ModelBlockSource(dense), batch)
    source = ModelBlockSource(other)
    loss = divergence_loss(source, batch, target, final_hidden(source, batch))
    expected = twin_loss(dense, twin, batch)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    loss.backward()
    expected.backward()
    for one, two in zip(other.model.layers.parameters(), twin.model.layers.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-7)
    assert other.lm_head.weight.grad is None
