"""Time of a prune in forward passes of the calibration data, for estimates."""

from __future__ import annotations

from hf_farms.config import PruneConfig
from hf_farms.registries import METHODS, REFINEMENTS

__all__ = ["TRAINING_PASSES", "pruning_passes", "recovery_passes"]

# Forward passes of a step of training: forward, backward and optimizer.
TRAINING_PASSES = 3.0


def pruning_passes(config: PruneConfig) -> float:
    """Return the passes of the calibration data, and of what method and refinement take as long as."""
    method = METHODS[config.method]
    return 2.0 * (method.needs == "activations") + method.passes + REFINEMENTS[config.refine].passes


def recovery_passes(passes: int) -> float:
    """Return the passes of a recovery by blocks: of the dense model, to record inputs and targets, the fit."""
    return 1 + 3 + TRAINING_PASSES * passes
