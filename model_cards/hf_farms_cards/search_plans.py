"""Choose the plans of a search for the table of a card: what was tried, and what won."""

from __future__ import annotations

import re
from collections import Counter

from hf_farms.reports import SearchRecord, SearchTrial

__all__ = ["shown_plans"]

# Moves in the table; of every other kind the best plan stands there.
SHOWN_MOVES = 3


def shown_plans(search: SearchRecord) -> list[SearchTrial]:
    """Return the best plan of each allocation and of the mixtures, the best moves, and all that were pruned."""
    shown, seen = [], Counter[str]()
    for trial in search.trials:  # the best first
        kind = _kind(trial.name)
        seen[kind] += 1
        is_best = seen[kind] <= (SHOWN_MOVES if kind == "move" else 1)
        is_pruned = trial.pruned is not None or trial.recovered is not None
        if is_best or is_pruned or trial.name == search.winner:
            shown.append(trial)
    return shown


def _kind(plan: str) -> str:
    """Return the allocation of a plan such as "farms, spread 0.2"; "mixture" or "move" of other plans."""
    return re.sub(r"^(half|a quarter|three quarters) of ", "", plan).split()[0].rstrip(",")
