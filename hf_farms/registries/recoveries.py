"""RECOVERIES: ways to adjust the kept weights of a pruned model, with its zeros fixed."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry

__all__ = ["RECOVERIES", "RecoveryEntry"]


@dataclass(frozen=True, kw_only=True)
class RecoveryEntry(Entry):
    """A way to recover quality after pruning.

    The function is a class, a `hf_farms.pruning.recovery.BlockRecovery`, whose object sees every block before and after
    it is pruned, or None, if no block is adjusted.

    Attributes:
        citation: BibTeX.
    """

    citation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs not in ("nothing", "activations"):
            raise ValueError(f"needs must be 'nothing' or 'activations' for a recovery, got {self.needs!r}.")


RETRAINING = """\
@article{wagner2025recovery,
  title   = {A Free Lunch in {LLM} Compression: Revisiting Retraining after Pruning},
  author  = {Wagner, Moritz and Roux, Christophe and Zimmer, Max and Pokutta, Sebastian},
  journal = {arXiv preprint arXiv:2510.14444},
  year    = {2025}
}"""

RECOVERIES: Registry[RecoveryEntry] = Registry(
    "recover",
    {
        "none": RecoveryEntry(
            needs="nothing",
            function="hf_farms.pruning.recovery:NoRecovery",
            sentence="",
        ),
        "submodule": RecoveryEntry(
            needs="activations",
            function="hf_farms.pruning.submodule_recovery:SubmoduleRecovery",
            sentence="With the zeros fixed, the remaining weights of the attention and of the feed-forward network of "
            "each block were then fitted on the calibration data, so that the hidden states come close to those of the "
            "dense model ([reconstruction of submodules](https://arxiv.org/abs/2510.14444)).",
            options=("recover_passes", "recover_rate"),
            citation=RETRAINING,
        ),
    },
)
