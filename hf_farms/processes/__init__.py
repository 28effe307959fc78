"""Several processes that make one result.

ranks.py     shares of work, and results of all processes
launched.py  the processes that `accelerate launch` or torchrun has started
gloo.py      exchange of tensors, and errors that reach all processes
"""

from __future__ import annotations

from hf_farms.processes.gloo import leave_ranks, working_ranks
from hf_farms.processes.launched import (
    LaunchedRanks,
    hidden_launch,
    is_main_process,
    launched_processes,
    launched_ranks,
    local_process_count,
)
from hf_farms.processes.ranks import (
    ONE_PROCESS,
    Ranks,
    WorkingRanks,
    all_rank_results,
    assign_to_ranks,
    check_same,
    first_rank_result,
    folder_of_rank,
    from_first_rank,
    rows_of_rank,
)

__all__ = [
    "ONE_PROCESS",
    "LaunchedRanks",
    "Ranks",
    "WorkingRanks",
    "all_rank_results",
    "assign_to_ranks",
    "check_same",
    "first_rank_result",
    "folder_of_rank",
    "from_first_rank",
    "hidden_launch",
    "is_main_process",
    "launched_processes",
    "launched_ranks",
    "leave_ranks",
    "local_process_count",
    "rows_of_rank",
    "working_ranks",
]
