"""Time and GPU memory of pruning weights of LLaMA-2-7B shapes, and 2:4 weights on semi-structured kernels.

    python tests/benchmarks/pruning_gpu.py [--methods wanda sparsegpt] [--sequences 128] [--length 2048]
    python tests/benchmarks/pruning_gpu.py --device cpu --blocks 1 --width 256 --sequences 4 --length 64   # a small try

Random bfloat16 weights on the device, 50%, uniform: what pruning costs does not depend on what the weights are. Then
the model is pruned 2:4 by magnitude, and the linear layers of one block are multiplied dense and as
`torch.sparse.to_sparse_semi_structured` (CUDA, from compute capability 8.0).
"""

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_farms.config import PruneConfig
from hf_farms.pruning.pruner import prune

HEAD = 128


def new_model(options):
    width = options.width
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 11008 // 4096,
        num_hidden_layers=options.blocks,
        num_attention_heads=width // HEAD,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device(options.device):
        return LlamaForCausalLM(config).bfloat16().eval()


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function, device):
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def pruning(options):
    print("| method | pattern | s | peak GPU memory, GB | of it weights | zeros |\n|---|---|---|---|---|---|")
    batches = torch.randint(0, 32000, (options.sequences, options.length)).split(options.batch)
    for method in options.methods:
        for pattern in options.patterns:
            model = new_model(options)
            weights = sum(p.nbytes for p in model.parameters()) / 1e9
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            config = PruneConfig(method=method, pattern=pattern, allocation="uniform")
            found = []
            seconds = timed(
                lambda model=model, config=config, found=found: found.append(
                    prune(model, config, calibration=batches).report
                ),
                options.device,
            )
            peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if options.device == "cuda" else "–"
            print(
                f"| {method} | {pattern} | {seconds:.1f} | {peak} | {weights:.1f} | {found[0].sparsity:.6%} |",
                flush=True,
            )
            del model


def semi_structured(options):
    if options.device != "cuda":
        print("\n2:4 on semi-structured kernels: needs a CUDA device, left out.")
        return
    options.blocks = 1
    model = new_model(options)
    prune(model, PruneConfig(method="magnitude", pattern="2:4", allocation="uniform"))
    print("\n| layer | tokens | dense, ms | 2:4, ms | ratio | largest relative difference |\n|---|---|---|---|---|---|")
    block = model.model.layers[0]
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        weight = block.get_submodule(name).weight.detach()
        sparse = torch.sparse.to_sparse_semi_structured(weight)
        for tokens in (64, 1024, 8192):
            x = torch.randn(tokens, weight.shape[1], device="cuda", dtype=torch.bfloat16)
            dense, fast = (torch.nn.functional.linear(x, w) for w in (weight, sparse))
            error = float((dense.float() - fast.float()).abs().max() / dense.float().abs().max())
            a, b = (
                statistics.median(timed(lambda w=w, x=x: torch.nn.functional.linear(x, w), "cuda") for _ in range(20))
                for w in (weight, sparse)
            )
            print(f"| {name} | {tokens} | {1e3 * a:.3f} | {1e3 * b:.3f} | {b / a:.2f} | {error:.1e} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--patterns", nargs="+", default=["unstructured", "2:4"])
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=4, help="sequences in a batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.blocks} blocks\n")
    pruning(options)
    semi_structured(options)


if __name__ == "__main__":
    main()
