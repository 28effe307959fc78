"""Find the under-trained layers of a model, and act on it.

weights -> spectra -> decisions -> appliers -> artifacts, on unmodified Hugging Face models. Names are imported when
they are first used, so that `import hf_farms` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_farms.allocation.lr import allocate_lr
    from hf_farms.allocation.plan import plan_sparsity
    from hf_farms.allocation.sparsity import allocate_sparsity
    from hf_farms.callbacks.factors import LRProgress, layerwise_decay
    from hf_farms.callbacks.farms_lr import FarmsLRCallback
    from hf_farms.callbacks.keep_zeros import KeepZerosCallback
    from hf_farms.callbacks.layerwise_lr import LayerwiseLRCallback
    from hf_farms.callbacks.layerwise_optimizer import layerwise_optimizer
    from hf_farms.callbacks.lora_masks import mask_lora
    from hf_farms.callbacks.s2ft import S2FTCallback
    from hf_farms.config import (
        CalibrationConfig,
        EvaluationConfig,
        FarmsConfig,
        FarmsLRConfig,
        LayerwiseLRConfig,
        LoadOptions,
        PruneConfig,
        S2FTConfig,
        SelectionConfig,
    )
    from hf_farms.hub import push
    from hf_farms.metrics.perplexity import Perplexity
    from hf_farms.pruning.pruner import prune
    from hf_farms.reports import PruneReport, SpectralReport
    from hf_farms.s2ft.adapters.fusing import fuse
    from hf_farms.s2ft.adapters.patches import S2FTAdapter
    from hf_farms.s2ft.adapters.router import AdapterRouter
    from hf_farms.s2ft.selection import select_channels
    from hf_farms.s2ft.surgery import apply_s2ft, restore, write_back
    from hf_farms.spectra.analysis import analyze
    from hf_farms.spectra.spectrum import layer_spectrum
    from hf_farms.workflows.analyze import analyze_checkpoint, compare_checkpoints
    from hf_farms.workflows.evaluate import evaluate_checkpoint
    from hf_farms.workflows.prune import prune_checkpoint

    __version__: str

__all__ = [
    "AdapterRouter",
    "CalibrationConfig",
    "EvaluationConfig",
    "FarmsConfig",
    "FarmsLRCallback",
    "FarmsLRConfig",
    "KeepZerosCallback",
    "LRProgress",
    "LayerwiseLRCallback",
    "LayerwiseLRConfig",
    "LoadOptions",
    "Perplexity",
    "PruneConfig",
    "PruneReport",
    "S2FTAdapter",
    "S2FTCallback",
    "S2FTConfig",
    "SelectionConfig",
    "SpectralReport",
    "allocate_lr",
    "allocate_sparsity",
    "analyze",
    "analyze_checkpoint",
    "apply_s2ft",
    "compare_checkpoints",
    "evaluate_checkpoint",
    "fuse",
    "layer_spectrum",
    "layerwise_decay",
    "layerwise_optimizer",
    "mask_lora",
    "plan_sparsity",
    "prune",
    "prune_checkpoint",
    "push",
    "restore",
    "select_channels",
    "write_back",
]

_HOME = {
    "AdapterRouter": "s2ft.adapters.router",
    "CalibrationConfig": "config",
    "EvaluationConfig": "config",
    "FarmsConfig": "config",
    "FarmsLRCallback": "callbacks.farms_lr",
    "FarmsLRConfig": "config",
    "KeepZerosCallback": "callbacks.keep_zeros",
    "LRProgress": "callbacks.factors",
    "LayerwiseLRCallback": "callbacks.layerwise_lr",
    "LayerwiseLRConfig": "config",
    "LoadOptions": "config",
    "Perplexity": "metrics.perplexity",
    "PruneConfig": "config",
    "PruneReport": "reports",
    "S2FTAdapter": "s2ft.adapters.patches",
    "S2FTCallback": "callbacks.s2ft",
    "S2FTConfig": "config",
    "SelectionConfig": "config",
    "SpectralReport": "reports",
    "allocate_lr": "allocation.lr",
    "allocate_sparsity": "allocation.sparsity",
    "analyze": "spectra.analysis",
    "analyze_checkpoint": "workflows.analyze",
    "apply_s2ft": "s2ft.surgery",
    "compare_checkpoints": "workflows.analyze",
    "evaluate_checkpoint": "workflows.evaluate",
    "fuse": "s2ft.adapters.fusing",
    "layer_spectrum": "spectra.spectrum",
    "layerwise_decay": "callbacks.factors",
    "layerwise_optimizer": "callbacks.layerwise_optimizer",
    "mask_lora": "callbacks.lora_masks",
    "plan_sparsity": "allocation.plan",
    "prune": "pruning.pruner",
    "prune_checkpoint": "workflows.prune",
    "push": "hub",
    "restore": "s2ft.surgery",
    "select_channels": "s2ft.selection",
    "write_back": "s2ft.surgery",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hf-farms")
    except PackageNotFoundError as error:  # a source tree without installation
        raise AttributeError(
            "hf_farms has no __version__, as it is not installed. Run: pip install hf-farms."
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
