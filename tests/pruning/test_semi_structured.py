"""2:4 weights on the kernels that are made for them."""

import pytest
import torch
from models import tiny

from hf_farms.config import PruneConfig
from hf_farms.pruning.pruner import prune

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="semi-structured kernels need a CUDA device")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_torch_takes_pruned_weights_as_semi_structured(method):
    model = tiny("llama", **SIZES).half().cuda()
    ids = torch.randint(0, model.config.vocab_size, (16, 64))
    prune(model, PruneConfig(method=method, pattern="2:4", allocation="uniform"), calibration=[ids])
    for layer in model.model.layers[0].modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach()
            sparse = torch.sparse.to_sparse_semi_structured(weight)
            assert torch.equal(sparse.to_dense(), weight)
            x = torch.randn(64, weight.shape[1], device="cuda", dtype=torch.float16)
            got, expected = (torch.nn.functional.linear(x, w) for w in (sparse, weight))
            assert torch.allclose(got, expected, rtol=1e-2, atol=1e-2)
