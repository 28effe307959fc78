"""Options for loading a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hf_farms.config.checks import check

__all__ = ["DTYPES", "LoadOptions"]

# By all names that torch has for them.
DTYPES = ("auto", "float32", "float", "bfloat16", "float16", "half", "float64", "double")
DEVICE = re.compile(r"[a-z]+(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options for loading a model. The defaults suit most models; only `dtype` changes results.

    Attributes:
        dtype: "auto" is the dtype of the checkpoint. "bfloat16" halves the memory of a float32 checkpoint at the cost
            of precision; set it for weights that are stored in a dtype that torch cannot compute with (float8).
        device: such as "cpu", "cuda" or "cuda:1". None is a GPU if available, else the CPU. Set it where several
            GPUs are shared.
        stream: leave the blocks on disk and load one at a time: memory of one block, for a slower run. None streams
            where the model would take more than half of the free memory. What a block computes is the same to the bit;
            but by default only a model in memory writes text for a recovery (`CalibrationConfig.num_continuations`).
        allow_pickle: read pickled weights if the model has no safetensors, and convert those in Meta's own layout. No
            code in them is run. Set it for old checkpoints from a source that you trust.
        revision: branch, tag or commit of a model on the Hub. None is its main branch; name a commit to make a result
            repeatable. Not used for folders.
    """

    dtype: str = "auto"
    device: str | None = None
    stream: bool | None = None
    allow_pickle: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        check(self.dtype in DTYPES, "dtype", "auto, float32, bfloat16 or float16", self.dtype)
        check(
            self.device is None or (isinstance(self.device, str) and DEVICE.fullmatch(self.device) is not None),
            "device",
            "None or a name such as 'cpu' or 'cuda:0'",
            self.device,
        )
        check(self.stream is None or isinstance(self.stream, bool), "stream", "True, False or None", self.stream)
        check(isinstance(self.allow_pickle, bool), "allow_pickle", "True or False", self.allow_pickle)
        check(
            self.revision is None or (isinstance(self.revision, str) and self.revision.strip() != ""),
            "revision",
            "None, or the name of a branch, a tag or a commit",
            self.revision,
        )
