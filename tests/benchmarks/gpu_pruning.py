"""The sections of gpu.py that prune: LLaMA-2-7B shapes in random weights, and 2:4 weights on semi-structured kernels.

Random bfloat16 weights, 50%, uniform: the time of pruning does not depend on the values of the weights.
"""

import statistics
from functools import partial

import spectra_common as common
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_farms.config import PruneConfig
from hf_farms.pruning.pruner import prune

VOCABULARY = 32000


def new_model(options, blocks):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        intermediate_size=options.width * 11008 // 4096,
        num_hidden_layers=blocks,
        num_attention_heads=max(1, options.width // 128),
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device(options.device):
        return LlamaForCausalLM(config).bfloat16().eval()


def pruning(options, *, method, blocks, patterns=("unstructured", "2:4"), refine="none", recover="none"):
    """Seconds and peak memory of pruning, scaled up from a few blocks to the whole model."""
    blocks = min(blocks, options.blocks)
    batches = torch.randint(0, VOCABULARY, (options.sequences, options.length)).split(options.batch)
    accepting = torch.randint(0, VOCABULARY, (8, options.length)).split(1)
    given = {"selection": accepting} if recover != "none" else {}
    for pattern in patterns:
        model = new_model(options, blocks)
        weights = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        config = PruneConfig(method=method, pattern=pattern, allocation="uniform", refine=refine, recover=recover)
        taken, result = common.clock(partial(prune, model, config, calibration=batches, **given), options.device)
        yield {
            "method": method,
            "pattern": pattern,
            "refine": refine,
            "recover": recover,
            "tokens": f"{options.sequences} x {options.length}",
            "blocks": blocks,
            "s": taken,
            "model_s": taken / blocks * options.depth,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if options.device == "cuda" else None,
            "weights_gb": weights,
            "zeros": result.report.sparsity,
        }
        del model, result


def semi_structured(options):
    """Milliseconds of one linear layer, dense and as `torch.sparse.to_sparse_semi_structured`."""
    model = new_model(options, 1)
    prune(model, PruneConfig(method="magnitude", pattern="2:4", allocation="uniform"))
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        weight = model.model.layers[0].get_submodule(name).weight.detach()
        # The kernels need CUDA from compute capability 8.0; elsewhere both sides are dense, which tries this section.
        sparse = torch.sparse.to_sparse_semi_structured(weight) if options.device == "cuda" else weight
        for tokens in options.tokens:
            x = torch.randn(tokens, weight.shape[1], device=options.device, dtype=torch.bfloat16)
            dense, fast = (torch.nn.functional.linear(x, matrix) for matrix in (weight, sparse))
            milliseconds = [
                1e3
                * statistics.median(
                    common.clock(partial(torch.nn.functional.linear, x, matrix), options.device)[0]
                    for _ in range(options.repeats)
                )
                for matrix in (weight, sparse)
            ]
            yield {
                "layer": name,
                "tokens": tokens,
                "dense_ms": milliseconds[0],
                "sparse_ms": milliseconds[1],
                "ratio": milliseconds[1] / milliseconds[0],
                "difference": float((dense.float() - fast.float()).abs().max() / dense.float().abs().max()),
                "kernel": "semi-structured" if options.device == "cuda" else "dense",
            }
