import math

import pytest
import torch
from models import tiny, tiny_bert

from hf_farms.errors import DataError, ModelError
from hf_farms.metrics.nll import TextNll, text_nll


def slow_nll(model, ids, context, count):
    """One token at a time, each from its own forward pass."""
    windows = []
    for w in range(count):
        window = ids[w * context : (w + 1) * context]
        losses = []
        for t in range(1, context):
            with torch.no_grad():
                p = model(window[None, :t]).logits[0, -1].double().softmax(-1)
            losses.append(-math.log(p[window[t]]))
        windows.append(sum(losses) / len(losses))
    return windows


@pytest.mark.parametrize(("context", "max_windows", "count"), [(7, None, 7), (16, 2, 2), (50, 9, 1)])
def test_nll_equals_the_slow_twin(llama, context, max_windows, count):
    ids = torch.randint(0, 100, (53,), generator=torch.Generator().manual_seed(0))
    result = text_nll(llama, ids, context_length=context, max_windows=max_windows)
    expected = slow_nll(llama, ids, context, count)
    assert result.windows == pytest.approx(expected, rel=1e-5)
    assert result.num_tokens == count * (context - 1)
    assert result.perplexity == pytest.approx(math.exp(sum(expected) / count), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    ids = torch.randint(0, 100, (200,), generator=torch.Generator().manual_seed(0))
    full = text_nll(tiny("llama"), ids, context_length=20)
    half = text_nll(tiny("llama", dtype=dtype), ids, context_length=20)
    assert half.nll == pytest.approx(full.nll, abs=0.02)


def test_model_stays_in_training_mode(llama):
    llama.train()
    text_nll(llama, list(range(60)), context_length=20)
    assert llama.training


def test_paired_error():
    a, b = TextNll((1.0, 2.0, 4.0), 8, 21), TextNll((0.5, 1.0, 2.0), 8, 21)
    mean, stderr = a.difference(b)
    assert mean == pytest.approx(3.5 / 3)
    deltas = torch.tensor([0.5, 1.0, 2.0])
    assert stderr == pytest.approx((deltas.std() / math.sqrt(3)).item())
    assert TextNll((1.0,), 8, 7).difference(TextNll((0.5,), 8, 7)) == (0.5, None)


def test_a_broken_model_has_infinite_perplexity():
    assert TextNll((1000.0,), 8, 7).perplexity == math.inf


def test_short_text_is_refused(llama):
    with pytest.raises(DataError, match="evaluation text must have at least 64 tokens, got 10"):
        text_nll(llama, list(range(10)), context_length=64)


def test_an_encoder_is_refused():
    with pytest.raises(ModelError, match="perplexity must be measured on a causal language model, got BertForMaskedLM"):
        text_nll(tiny_bert(), list(range(60)), context_length=20)


def test_nan_predictions_are_refused(llama):
    llama.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="predictions must be finite"):
        text_nll(llama, list(range(60)), context_length=20)
