import pytest
import torch
from models import tiny

from hf_farms.blocks import StreamedBlockSource
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.loading.opening import load_model
from hf_farms.metrics.sparsity_count import count_model_zeros
from hf_farms.pruning.pruner import prune


def slow_zeros(modules):
    """One weight at a time."""
    weights = [w for module in modules for w in module.weight.flatten().tolist()]
    return sum(w == 0 for w in weights), len(weights)


def test_zeros_equal_the_slow_twin(llama):
    llama.model.embed_tokens.weight.data[:3] = 0
    llama.model.layers[1].mlp.up_proj.weight.data[0] = 0
    llama.model.layers[2].self_attn.o_proj.weight.data[:, 1] = -0.0
    found = count_model_zeros(llama)
    for block, counted in zip(llama.model.layers, found.blocks, strict=True):
        assert counted == slow_zeros(m for m in block.modules() if isinstance(m, torch.nn.Linear))
    assert (found.num_zeros, found.num_weights) == (32 + 32, sum(w for _, w in found.blocks))
    assert found.num_zero_parameters == 32 + 32 + 3 * 32
    assert found.num_parameters == llama.num_parameters()


def test_a_tied_head_counts_once():
    model = tiny("llama", tie_word_embeddings=True)
    model.model.embed_tokens.weight.data[0] = 0
    assert count_model_zeros(model).num_zero_parameters == 32


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.int8])
def test_parameters_of_any_dtype_are_counted(llama, dtype):
    weight = torch.tensor([[0.0, -0.0, 1.0], [2.0, 0.0, -1.0]]).to(dtype)
    before = count_model_zeros(llama)
    llama.register_parameter("packed", torch.nn.Parameter(weight, requires_grad=False))
    after = count_model_zeros(llama)
    assert after.num_zero_parameters - before.num_zero_parameters == 3
    assert after.num_parameters - before.num_parameters == 6


def test_it_is_the_sparsity_that_pruning_reports(llama):
    report = prune(llama, PruneConfig(method="magnitude", sparsity=0.3, allocation="uniform")).report
    found = count_model_zeros(llama)
    assert (found.sparsity, found.parameter_sparsity) == (report.sparsity, report.parameter_sparsity)


def test_a_checkpoint_on_disk_has_the_same_zeros(llama, tmp_path):
    llama.model.layers[0].mlp.gate_proj.weight.data[:5] = 0
    llama.save_pretrained(tmp_path)
    source = load_model(str(tmp_path), stream=True, tokenizer=False).source
    assert isinstance(source, StreamedBlockSource)
    steps = []
    assert count_model_zeros(source, progress=lambda *step: steps.append(step)) == count_model_zeros(llama)
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="layers"):
        count_model_zeros(torch.nn.LayerNorm(4))
