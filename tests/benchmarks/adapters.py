"""Cost of adapters: switching, several in one batch, bytes; against LoRA with as many parameters in the same layers.

    python tests/benchmarks/adapters.py                                     # d = 4096 in bfloat16, 1 to 64 adapters
    python tests/benchmarks/adapters.py switching --d 1024 2048 4096 8192 --dtype bfloat16 float32
    python tests/benchmarks/adapters.py --small                             # a try, in seconds

One layer is d x d, its adapter has 2 r channels, the LoRA beside it rank r. All times are of one layer, medians of
calls in turn; on one thread of a CPU, seconds of the thread. Switching: `scatter` writes the base of one adapter and
the values of another at once, `switch` is S2FTAdapter.switch with its checks, `lora` subtracts BA and adds B'A';
`of_copy` is the bandwidth of the scatter, of the bytes that are read and written, against a plain copy. Parallel: each
sample has another adapter; LoRA as two batched products over the samples, with the factors of the batch copied before
as in `AdapterRouter.using` (`lora_gathering`: copied in every call).
"""

import argparse
import os

import torch
from adapters_common import DTYPES
from adapters_measures import parallel, sizes, switching
from gpu import show_row

TABLES = ("switching", "parallel", "sizes")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; without any, all")
    parser.add_argument("--d", type=int, nargs="+", default=[4096])
    parser.add_argument("--rank", type=int, nargs="+", default=[16, 128], help="parallel takes the first")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 32], help="of each sample")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="small sizes, whose figures mean nothing")
    chosen = parser.parse_args()
    if unknown := set(chosen.tables) - set(TABLES):
        parser.error(f"tables must be of {', '.join(TABLES)}, got {', '.join(sorted(unknown))}.")
    if chosen.small:
        chosen.d, chosen.rank, chosen.adapters, chosen.tokens, chosen.repeats = [64], [2], [1, 3], [1, 4], 1
    return chosen


def rows_of(table, d, dtype, chosen):
    """The generator of the rows of one table."""
    if table == "sizes":
        return sizes(d, dtype, ranks=chosen.rank)
    if table == "switching":
        return switching(d, dtype, chosen.device, ranks=chosen.rank, repeats=chosen.repeats)
    options = {"rank": chosen.rank[0], "adapters": chosen.adapters, "tokens": chosen.tokens}
    return parallel(d, dtype, chosen.device, repeats=chosen.repeats, **options)


def main():
    chosen = parse_arguments()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    on = torch.cuda.get_device_name() if chosen.device == "cuda" else f"CPU, {chosen.threads} of {os.cpu_count()} cores"
    print(f"{on}, torch {torch.__version__}")
    for table in chosen.tables or TABLES:
        print(f"\n## {table}\n")
        rows = []
        for dtype in chosen.dtype:
            for d in chosen.d:
                for row in rows_of(table, d, dtype, chosen):
                    rows.append(row)
                    show_row(rows)


if __name__ == "__main__":
    main()
