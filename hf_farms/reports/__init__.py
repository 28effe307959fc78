"""Reports of measurements and runs: frozen dataclasses with a versioned JSON form. Loads no torch.

spectral.py     analyze: blocks, each with its layers
standing_out.py blocks that look less trained than the others
pruning.py      prune: the recipe, spectra before and after, sparsity, where the model came from
search.py       the search of an allocation: what was tried, and what won
evaluation.py   perplexity and tasks; eval: what was measured
training.py     a training with one of the callbacks
lr_history.py   farms_lr.jsonl, the measurements of a training
folders.py      load the report of a folder, or build it from the files of a training
recording.py    write the report of a finished training
base.py         the JSON form
"""

from hf_farms.reports.base import READABLE_VERSIONS, REPORT_NAME, SCHEMA_VERSION, Report, json_converter, versions
from hf_farms.reports.evaluation import (
    EvaluationReport,
    PerplexityRecord,
    PerplexityScore,
    SparsityScore,
    TaskRecord,
)
from hf_farms.reports.pruning import (
    AcceptanceRecord,
    BaseModelRecord,
    BlockSparsity,
    CalibrationRecord,
    DistillationRecord,
    LayerSparsity,
    PruneReport,
    RecoveredPart,
    acceptance_text,
)
from hf_farms.reports.search import SearchRecord, SearchTrial
from hf_farms.reports.spectral import BlockSpectrum, LayerRecord, SpectralReport
from hf_farms.reports.standing_out import OutlyingBlock, StandingOut
from hf_farms.reports.training import TrainReport

__all__ = [
    "READABLE_VERSIONS",
    "REPORT_NAME",
    "SCHEMA_VERSION",
    "AcceptanceRecord",
    "BaseModelRecord",
    "BlockSparsity",
    "BlockSpectrum",
    "CalibrationRecord",
    "DistillationRecord",
    "EvaluationReport",
    "LayerRecord",
    "LayerSparsity",
    "OutlyingBlock",
    "PerplexityRecord",
    "PerplexityScore",
    "PruneReport",
    "RecoveredPart",
    "Report",
    "SearchRecord",
    "SearchTrial",
    "SparsityScore",
    "SpectralReport",
    "StandingOut",
    "TaskRecord",
    "TrainReport",
    "acceptance_text",
    "json_converter",
    "versions",
]
