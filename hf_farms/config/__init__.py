"""Every option and its default, once. Frozen, keyword-only, validated on creation; loads no torch.

The same object feeds the function, the callback, the command line, the report and the card.
"""

from hf_farms.config.lr import LR_MAPS, LR_QUANTITIES, LR_UNITS, FarmsLRConfig, LRMap, LRQuantity, LRUnit
from hf_farms.config.prune import (
    ALLOCATIONS,
    METHODS,
    Allocation,
    CalibrationConfig,
    EvaluationConfig,
    Method,
    PruneConfig,
    default_output_name,
)
from hf_farms.config.spectra import BLOCK_SCORES, FITS, BlockScore, FarmsConfig, Fit

__all__ = [
    "ALLOCATIONS",
    "BLOCK_SCORES",
    "FITS",
    "LR_MAPS",
    "LR_QUANTITIES",
    "LR_UNITS",
    "METHODS",
    "Allocation",
    "BlockScore",
    "CalibrationConfig",
    "EvaluationConfig",
    "FarmsConfig",
    "FarmsLRConfig",
    "Fit",
    "LRMap",
    "LRQuantity",
    "LRUnit",
    "Method",
    "PruneConfig",
    "default_output_name",
]
