"""Calibration text that the dense model writes by default, for a recovery."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_farms.data.calibration import context_limit
from hf_farms.data.generation import can_write
from hf_farms.processes import from_first_rank
from hf_farms.workflows.texts import WRITTEN_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_farms.loading.opening import LoadedModel
    from hf_farms.output.recipe import Recipe
    from hf_farms.workflows.prune_plan import PrunePlan

__all__ = ["decide_text"]

STREAMED = (
    "The dense model wrote no calibration text for the recovery, as its blocks are read from disk: more text often "
    "helps a recovery."
)
CONTINUED = (
    "The dense model wrote no calibration text for the recovery, as this work was begun without: more text often helps "
    "a recovery. A new run writes some."
)


def decide_text(
    plan: PrunePlan, loaded: LoadedModel, was_begun: Callable[[Recipe], bool]
) -> tuple[PrunePlan, tuple[str, ...]]:
    """Return the plan with a number in place of a default `num_continuations`, and notes.

    The model writes text if it is in memory, has its head and generates text. Unfinished work of the same settings is
    continued as it was begun: whether a model fits into memory may change.

    Args:
        plan: of a prune.
        loaded: its model.
        was_begun: whether a recipe is that of unfinished work which is continued; called on the first process.
    """
    if plan.recipe.is_decided:
        return plan, ()
    written, read = (plan.recipe.decided(writes=writes) for writes in (True, False))

    def decide() -> tuple[bool, tuple[str, ...]]:
        model, length = loaded.source.model, plan.recipe.calibration.sequence_length
        able = not loaded.absent and can_write(model, min(length, context_limit(model) or length))
        # Text that is not written yet would take a streamed model too long.
        if was_begun(written) and (loaded.source.in_memory or (plan.output.state / WRITTEN_NAME).exists()):
            return True, ()
        if was_begun(read):
            return False, ((CONTINUED if loaded.source.in_memory else STREAMED,) if able else ())
        return (able, ()) if loaded.source.in_memory else (False, (STREAMED,) if able else ())

    # On several processes, free memory may differ.
    writes, notes = from_first_rank(decide, plan.output.ranks)
    return replace(plan, recipe=written if writes else read), notes
