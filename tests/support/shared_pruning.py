"""Prunings that are the same on several processes as on one."""

import torch
from models import tiny

from hf_farms import CalibrationConfig, EvaluationConfig, LoadOptions, PruneConfig, prune

# Uneven batches: one process gets two of them, the other one three.
BATCHES = [(3, 20), (1, 60), (2, 33), (1, 7), (4, 9)]
CASES = {
    "wanda": {"method": "wanda"},
    "wanda 2:4": {"method": "wanda", "pattern": "2:4", "allocation": "uniform"},
    "sparsegpt": {"method": "sparsegpt", "block_size": 16},
    "sparsegpt 2:4": {"method": "sparsegpt", "pattern": "2:4", "allocation": "uniform"},
    "swaps": {"method": "wanda", "refine": "swaps", "allocation": "owl"},
    "sparsegpt and swaps": {"method": "sparsegpt", "refine": "swaps"},
    "magnitude": {"method": "magnitude"},
    "recovery": {"method": "wanda", "recover": "submodule", "recover_passes": 1},
    "distillation": {"method": "wanda", "recover": "distill", "recover_passes": 1},
}
# One batch for two processes.
FEW = "wanda 2:4"


def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(100, shape, generator=generator) for shape in BATCHES]


def pruned(name, data=None, **options):
    """The weights after pruning, and the blocks of the report."""
    model = tiny("llama", hidden_size=48, intermediate_size=64)
    report = prune(model, PruneConfig(sparsity=0.5, **CASES[name]), calibration=data or batches(), **options).report
    return {key: value.detach().clone() for key, value in model.state_dict().items()}, report.blocks


def demo_settings():
    """Arguments of `prune_checkpoint` for the demo model that take seconds.

    In float32: products in bfloat16 depend on the number of threads, and SparseGPT makes more of the difference.
    """
    return {
        "load": LoadOptions(dtype="float32"),
        "config": PruneConfig(sparsity=0.5, method="sparsegpt", allocation="owl"),
        "calibration": CalibrationConfig(num_sequences=10, sequence_length=64),
        "evaluation": EvaluationConfig(context_length=64, max_windows=5),
    }


def distilled_settings():
    """The same with a training of the whole model."""
    return {
        "load": LoadOptions(dtype="float32"),
        "config": PruneConfig(allocation="uniform", recover="distill", recover_passes=1),
        "calibration": CalibrationConfig(num_sequences=3, sequence_length=64, num_continuations=0),
        "evaluation": EvaluationConfig(source=None),
    }


def searched_settings(allocation="auto"):
    """The same with a recovery, after a search that is to find `BAD_PLAN`."""
    return demo_settings() | {
        "config": PruneConfig(allocation=allocation, recover="submodule", recover_passes=1),
        "calibration": CalibrationConfig(num_sequences=2, sequence_length=64),
    }


# Of the first four blocks of the demo, and worse than uniform sparsity.
BAD_PLAN = (0.9, 0.1) * 2
