"""Values of the option `ends`, shared by pruning and learning rates, and its default."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["DEFAULT_ENDS", "EARLIER_ENDS", "ENDS", "LR_ENDS", "Ends", "LREnds"]

Ends = Literal["measured", "first-capped", "first-lowest", "first-median", "first-apart", "lowest", "median", "apart"]
# "released" reproduces `skip_ends` of earlier versions for single layers.
LREnds = Literal[Ends, "released"]

ENDS: tuple[Ends, ...] = get_args(Ends)
LR_ENDS: tuple[LREnds, ...] = get_args(LREnds)
# Of pruning; learning rates keep the earlier behavior, as no rule was shown to help there.
DEFAULT_ENDS: Ends = "first-capped"
# The behavior of versions without the option: files without it mean this, whatever the default is.
EARLIER_ENDS: Ends = "measured"
