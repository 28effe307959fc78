"""Calibration text that the dense model writes by default, for a recovery."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_farms.data.calibration import context_limit
from hf_farms.data.generation import can_write
from hf_farms.processes import from_first_rank

if TYPE_CHECKING:
    from hf_farms.loading.opening import LoadedModel
    from hf_farms.workflows.prune_plan import PrunePlan

__all__ = ["decide_text"]

STREAMED = (
    "The dense model wrote no calibration text for the recovery, as its blocks are read from disk: more text often "
    "helps a recovery."
)


def decide_text(plan: PrunePlan, loaded: LoadedModel) -> tuple[PrunePlan, tuple[str, ...]]:
    """Return the plan with a number in place of a default `num_continuations`, and notes.

    The model writes text if it is in memory, has its head and generates text. Work that was begun is continued with the
    number that it was begun with: whether a model fits into memory may change, and so may defaults.

    Args:
        plan: of a prune.
        loaded: its model.
    """
    if plan.recipe.is_decided:
        return plan, ()

    def decide() -> tuple[bool, bool]:
        model, length = loaded.source.model, plan.recipe.calibration.sequence_length
        able = not loaded.absent and can_write(model, min(length, context_limit(model) or length))
        begun = plan.output.begun_with("calibration.num_continuations")
        writes = able and loaded.source.in_memory if begun is None else bool(begun)
        return writes, able and not writes

    # On several processes, free memory may differ.
    writes, streamed = from_first_rank(decide, plan.output.ranks)
    recipe = plan.recipe.decided(writes=writes)
    return replace(plan, recipe=recipe), (STREAMED,) if streamed and not loaded.source.in_memory else ()
