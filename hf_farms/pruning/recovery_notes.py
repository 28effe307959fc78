"""Sentences on recoveries for the notes of a report."""

from __future__ import annotations

from collections.abc import Sequence

from hf_farms.config import PruneConfig
from hf_farms.reports import AcceptanceRecord, BlockSparsity, DistillationRecord, SpectralReport, acceptance_text
from hf_farms.reports.standing_out import standing_out_of

__all__ = [
    "few_sequences_note",
    "few_sequences_to_train_note",
    "less_trained_note",
    "recovery_notes",
    "training_note",
]

# A training of the whole model gained with 128 sequences. Of 32, to which the blocks were fitted too, it learned to
# predict those alone; nothing between them was tried.
TRAINED_SEQUENCES = 64
# A note names up to so many blocks, and of more the first.
NAMED_BLOCKS = 4


def few_sequences_note(batches: Sequence[object]) -> str | None:
    """Describe calibration data that leaves nothing to hold out; None if there are two sequences or more."""
    if len(batches) > 1:
        return None
    return (
        f"calibration should have at least 2 sequences for recovery, got {len(batches)}: the fit is accepted on the "
        "sequence that it was made on."
    )


def few_sequences_to_train_note(count: int, config: PruneConfig) -> str | None:
    """Describe calibration data that a training of the whole model learns by heart; None for any other."""
    if not config.trains or count >= TRAINED_SEQUENCES:
        return None
    return (
        f"calibration should have at least {TRAINED_SEQUENCES} sequences for `recover={config.recover!r}`, got "
        f"{count}: the training learns so few by heart, and gains little. Give more (`calibration.num_sequences`)."
    )


def less_trained_note(spectra: SpectralReport, config: PruneConfig, *, can_search: bool) -> str | None:
    """Describe blocks that may bear more than the uniform sparsity before a recovery; None without such blocks.

    Args:
        spectra: of the dense model.
        config: of the prune.
        can_search: whether allocations can be compared by the predictions of the model.
    """
    blocks = standing_out_of(spectra).blocks
    # A pattern such as 2:4 has one sparsity for all blocks.
    fixed = config.group is not None and config.group[0] is not None
    if not (config.recovers and config.allocation == "uniform" and can_search and blocks) or fixed:
        return None
    if len(blocks) <= NAMED_BLOCKS:
        names = f"{'Blocks' if len(blocks) > 1 else 'Block'} {', '.join(block.name for block in blocks)}"
    else:
        names = f"{len(blocks)} blocks, first {blocks[0].name},"
    return (
        f"{names} may be less trained than the others, and bear a higher sparsity: `allocation='auto'` may give a "
        "better model, as it did for the demo model, of which two blocks were inserted late."
    )


def training_note(record: DistillationRecord | None, acceptance: AcceptanceRecord | None = None) -> str | None:
    """Describe a training whose weights are not those of the model; None for any other.

    Args:
        record: of the training, if there was one.
        acceptance: the text that accepts it; None: calibration sequences that were held out.
    """
    if record is None or record.accepted:
        return None
    return (
        f"Distillation did not lower the KL to the dense model on {acceptance_text(acceptance)} "
        f"({record.divergence_before:.4g} nats per token before): the model has the weights from before."
    )


def recovery_notes(blocks: Sequence[BlockSparsity], acceptance: AcceptanceRecord | None = None) -> list[str]:
    """Describe the submodules whose weights stay as they were, and the blocks that were fitted as a whole.

    Args:
        blocks: records of all blocks.
        acceptance: the text that accepted the fits; None: calibration sequences that were held out.
    """
    parts = [part for block in blocks for part in block.recovery]
    refused = [part.name for part in parts if not part.accepted]
    whole = [block.name for block in blocks if [part.name for part in block.recovery] == [block.name]]
    notes = []
    if refused:
        notes.append(
            f"Recovery did not lower the error of {len(refused)} of {len(parts)} submodules on "
            f"{acceptance_text(acceptance)}, first {refused[0]}: they have the weights that the method left."
        )
    if whole:
        notes.append(
            f"{len(whole)} of {len(blocks)} blocks, first {whole[0]}, do not have attention and feed-forward network "
            "as separate modules, and were fitted as a whole."
        )
    return notes
