"""RECOVERIES: ways to adjust the kept weights of a pruned model, with its zeros fixed."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry, check_path

__all__ = ["RECOVERIES", "RecoveryEntry"]

# Calibration sequences that continuations are added up to, and passes over them at least.
CALIBRATION_SEQUENCES, FEWEST_PASSES = 128, 2


@dataclass(frozen=True, kw_only=True)
class RecoveryEntry(Entry):
    """A way to recover quality after pruning.

    The function is a class, a `hf_farms.pruning.recovery.BlockRecovery`, whose object sees every block before and after
    it is pruned. Of an entry with `first` it is a function that trains the whole pruned model in memory, as
    `hf_farms.distillation.distilling:distill`, after its blocks were recovered.

    Attributes:
        first: name of the recovery of single blocks that the training of the whole model starts from; None for a
            recovery of single blocks.
        passes: default of the option `recover_passes`, for few sequences.
        steps: with more sequences the default passes over them fall, to two at least, so that they stay within so many
            steps of one sequence; None: they do not fall.
        continuations: by default a dense model in memory writes so many continuations of each calibration sequence, up
            to `CALIBRATION_SEQUENCES` in all.
        rate: default of the option `recover_rate`.
        check: import path of a function that gets the blocks and the config, and raises before anything is pruned; None
            accepts all models.
        citation: BibTeX.
    """

    first: str | None = None
    passes: int = 3
    steps: int | None = None
    continuations: int = 0
    rate: float = 0.01
    check: str | None = None
    citation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs not in ("nothing", "activations"):
            raise ValueError(f"needs must be 'nothing' or 'activations' for a recovery, got {self.needs!r}.")
        if self.check is not None:
            check_path("check", self.check)

    def default_passes(self, sequences: int) -> int:
        """Return the default of `recover_passes` for a number of calibration sequences."""
        if self.steps is None:
            return self.passes
        return min(self.passes, max(FEWEST_PASSES, self.steps // max(1, sequences)))

    def default_continuations(self, sequences: int) -> int:
        """Return the default of `num_continuations` for a number of passages, where the model can write them."""
        return max(0, min(self.continuations * sequences, CALIBRATION_SEQUENCES - sequences))

    def describe(self, config: object) -> str:
        """Return the sentence with the trained weights in the place of `{trained}`."""
        budget = getattr(config, "recover_budget", None)
        trained = (
            "all remaining weights of the pruned layers were"
            if budget is None
            else f"a selection of heads and channels, {budget:.3g} of the parameters, was"
        )
        return self.sentence.format_map({**vars(config), "trained": trained})


RETRAINING = """\
@article{wagner2025recovery,
  title   = {A Free Lunch in {LLM} Compression: Revisiting Retraining after Pruning},
  author  = {Wagner, Moritz and Roux, Christophe and Zimmer, Max and Pokutta, Sebastian},
  journal = {arXiv preprint arXiv:2510.14444},
  year    = {2025}
}"""

DISTILLATION = """\
@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015}
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
            # KL on a selection text in nats per token, for SmolLM2-135M at 50% (Wanda, uniform, 32 sequences of 512
            # tokens): 0.406 after three passes, 0.391 after six. On its first eight blocks, twelve passes were no
            # better, nor was half or twice the rate.
            passes=6,
            # Six passes over 32 sequences. Of 128 sequences two passes close more of the gap to the dense model, where
            # 96 of them are continuations of the others (BENCHMARKS.md, "Allocations, masks and recovery").
            steps=6 * 32,
            continuations=3,
            options=("recover_passes", "recover_rate"),
            citation=RETRAINING,
        ),
        "distill": RecoveryEntry(
            needs="activations",
            function="hf_farms.distillation.distilling:distill",
            first="submodule",
            sentence="Then {trained} trained together, with the zeros fixed, so that the predictions on the "
            "calibration data come close to those of the dense model "
            "([distillation](https://arxiv.org/abs/1503.02531)).",
            options=("recover_passes", "recover_rate", "recover_budget"),
            check="hf_farms.distillation.trained_weights:check_selection",
            # KL on a selection text in nats per token, for SmolLM2-135M at 50% (Wanda, uniform, 128 sequences of 512
            # tokens for the blocks and for the training): 0.344 before, 0.324 after two passes at a rate of 0.0003,
            # 0.333 at 0.001. At 0.001 it rose where blocks and training had 32 sequences.
            passes=2,
            continuations=3,
            rate=0.0003,
            citation=DISTILLATION,
        ),
    },
)
