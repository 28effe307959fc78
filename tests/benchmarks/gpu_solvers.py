"""The section `solvers` of gpu.py: eigenvalues of Gram matrices that lie on the GPU, solved there and on the cores."""

import spectra_common as common
import torch

from hf_farms.spectra import gpu_solver


def solvers(options):
    """Milliseconds of a matrix of k rows, in batches: on the GPU, on all cores and on one, copies included."""
    for k, count in options.solver_sizes:
        source = common.generator(k, options.device)
        x = torch.randn((count, k, 4 * k), generator=source, device=options.device)
        gram = x @ x.mT
        few = gram[: max(1, count // 16)]  # the slower ones are timed on a part
        torch.linalg.eigvalsh(gram[:1])
        on_gpu, expected = common.clock(lambda: torch.linalg.eigvalsh(few), options.device)  # noqa: B023
        gpu_solver.solve_copies(gram)
        cores, found = common.clock(lambda: gpu_solver.solve_copies(gram), options.device)  # noqa: B023
        with common.torch_threads(1):
            one, _ = common.clock(lambda: gpu_solver.solve_copies(few), options.device)  # noqa: B023
        yield {
            "k": k,
            "matrices": count,
            "gpu_ms": 1e3 * on_gpu / len(few),
            "cores_ms": 1e3 * cores / count,
            "one_core_ms": 1e3 * one / len(few),
            "ratio": (cores / count) / (on_gpu / len(few)),
            "difference": float((found[: len(few)] - expected).abs().max() / expected.max()),
            "threads": torch.get_num_threads(),
        }
