"""Every option and its default, once. Frozen, keyword-only, validated on creation; loads no torch.

The same object feeds the function, the callback, the command line, the report and the card.
"""

from typing import TYPE_CHECKING

from hf_farms.config.ends import ENDS, LR_ENDS, Ends, LREnds
from hf_farms.config.loading import DTYPES, LoadOptions
from hf_farms.config.lr import (
    LR_MAPS,
    LR_QUANTITIES,
    LR_UNITS,
    FarmsLRConfig,
    LayerwiseLRConfig,
    LRMap,
    LRQuantity,
    LRUnit,
)
from hf_farms.config.output_names import default_output_name
from hf_farms.config.prune import (
    ALLOCATIONS,
    GRANULARITIES,
    METHODS,
    RECOVERIES,
    REFINEMENTS,
    Allocation,
    Granularity,
    Method,
    PruneConfig,
    Recover,
)
from hf_farms.config.s2ft import (
    S2FT_KEEPS,
    S2FT_LAYOUTS,
    S2FT_ROLES,
    S2FTConfig,
    S2FTKeep,
    S2FTLayout,
    S2FTRole,
    S2FTStrategy,
)
from hf_farms.config.spectra import BLOCK_SCORES, FITS, BlockScore, FarmsConfig, Fit
from hf_farms.config.texts import CalibrationConfig, EvaluationConfig, SelectionConfig
from hf_farms.files.moved_names import moved

__all__ = [
    "ALLOCATIONS",
    "BLOCK_SCORES",
    "DTYPES",
    "ENDS",
    "FITS",
    "GRANULARITIES",
    "LR_ENDS",
    "LR_MAPS",
    "LR_QUANTITIES",
    "LR_UNITS",
    "METHODS",
    "RECOVERIES",
    "REFINEMENTS",
    "S2FT_KEEPS",
    "S2FT_LAYOUTS",
    "S2FT_ROLES",
    "Allocation",
    "BlockScore",
    "CalibrationConfig",
    "Ends",
    "EvaluationConfig",
    "FarmsConfig",
    "FarmsLRConfig",
    "Fit",
    "Granularity",
    "LREnds",
    "LRMap",
    "LRQuantity",
    "LRUnit",
    "LayerwiseLRConfig",
    "LoadOptions",
    "Method",
    "PruneConfig",
    "Recover",
    "S2FTConfig",
    "S2FTKeep",
    "S2FTLayout",
    "S2FTRole",
    "S2FTStrategy",
    "SelectionConfig",
    "default_output_name",
]

if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"S2FT_STRATEGIES": "hf_farms.registries.STRATEGIES"})
