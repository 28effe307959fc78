"""Distillation of a whole pruned model: the recovery `distill` names the function of this file.

Embeddings, final norm and head are those of both models, so that the hidden states of the dense model behind its last
block stand for its predictions, and no second model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hf_farms.blocks import BlockSource, ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.distillation.student import HiddenByIndex, Student
from hf_farms.distillation.trained_weights import KeptWeights, SelectedChannels, pruned_weights
from hf_farms.distillation.training import TrainingSettings, train
from hf_farms.errors import ModelError
from hf_farms.metrics.divergence import count_tokens, divergences, final_hidden
from hf_farms.progress import Progress
from hf_farms.pruning.recovery import passes_text
from hf_farms.pruning.submodule_calls import fit_dtype
from hf_farms.pruning.training_folder import TrainingFolder
from hf_farms.reports import DistillationRecord

__all__ = ["HELD_OUT", "distill"]

# Without acceptance sequences, one of so many is held out: they decide whether the training is accepted.
HELD_OUT = 8


def distill(
    source: BlockSource,
    config: PruneConfig,
    calibration: Sequence[Mapping[str, Tensor]],
    acceptance: Sequence[Mapping[str, Tensor]],
    dense: HiddenByIndex,
    *,
    folder: Path | None,
    progress: Progress,
) -> DistillationRecord:
    """Train the kept weights of all pruned layers to lower KL(dense || pruned) of the predictions, zeros fixed.

    Where the KL on sequences that nothing was fitted to does not fall, the weights stay as they were.

    The defaults of passes and learning rate are those of trials on SmolLM2 (figures in the registry). Small models that
    are far from converged bear more: on the demo, 10 passes at 0.005 lower the KL by 40%.

    Time: for each pass a forward and a backward pass of the calibration data through the whole model, and three times
    the product of its head. Memory: `num_bytes` of the trained weights, the hidden states of the calibration data, and
    the activations of one sequence.

    Args:
        source: the pruned model in memory.
        config: passes, learning rate and trained weights.
        calibration: model inputs by name, one sequence each.
        acceptance: sequences of another text that accept the result; empty: some of the calibration are held out.
        dense: hidden states of the dense model behind its last block, for each of both.
        folder: for checkpoints of the Trainer; the same training continues from the last one. None writes none.
        progress: called with ("distill (...): KL x", steps done, steps in all).

    Raises:
        ModelError: the pruned model predicts NaN or infinity.
        OutputError: the folder holds checkpoints of other settings, data or weights.
    """
    assert isinstance(source, ModelBlockSource), "streamed models were refused"
    batches = [*calibration, *acceptance]
    fitted, held_out = split_sequences(len(calibration), len(acceptance))
    trained = KeptWeights(source) if config.recover_budget is None else SelectedChannels(source, config.recover_budget)
    if folder is not None:
        TrainingFolder(folder, config, batches).mark(pruned_weights(source))
    passes = config.passes_over(len(calibration))
    stage = f"distill ({passes_text(passes)}, up to {trained.num_bytes / 2**30:.2f} GiB)"
    before = _divergence(source, batches, dense, held_out)
    if not math.isfinite(before):
        raise ModelError(
            f"predictions of the pruned model must be finite for recover={config.recover!r}, got NaN or infinity.",
            hint="Load the model in bfloat16 or float32, or choose a lower sparsity.",
        )
    bfloat16 = fit_dtype(source.model) == torch.bfloat16
    settings = TrainingSettings(passes=passes, rate=config.effective_rate, bfloat16=bfloat16, folder=folder)
    progress(f"{stage}: KL {before:.4g}", 0, len(fitted) * settings.passes)
    with trained.training() as weights, torch.enable_grad():
        steps = train(
            Student(source, batches, dense, bfloat16=bfloat16),
            source.model,
            weights,
            fitted,
            settings,
            tick=lambda done, total, loss: progress(f"{stage}: KL {loss:.4g}", done, total),
        )
    after = _divergence(source, batches, dense, held_out)
    # Not `>=`: NaN is refused too.
    accepted = after < before
    if not accepted:
        trained.undo()
    return DistillationRecord(
        divergence_before=before,
        divergence=after if math.isfinite(after) else None,
        accepted=accepted,
        steps=steps,
    )


def split_sequences(count: int, acceptance: int = 0) -> tuple[list[int], list[int]]:
    """Return the numbers of the sequences that are fitted, and of those that accept the result.

    Args:
        count: calibration sequences; if nothing else accepts, some of them are held out, and a single one is both.
        acceptance: sequences behind them that accept.
    """
    if acceptance:
        return list(range(count)), list(range(count, count + acceptance))
    held_out = list(range(HELD_OUT - 1, count, HELD_OUT)) or [count - 1]
    return [index for index in range(count) if index not in held_out] or held_out, held_out


def _divergence(
    source: ModelBlockSource, batches: Sequence[Mapping[str, Tensor]], dense: HiddenByIndex, numbers: Sequence[int]
) -> float:
    """Return KL(dense || pruned) in nats per token over some of the sequences; not finite if predictions are not."""
    total, tokens = 0.0, 0
    for number in numbers:
        batch = batches[number]
        with source.evaluation(), torch.no_grad():
            hidden = final_hidden(source, batch)
            total += divergences(source, batch, dense[number], {"pruned": hidden})["pruned"]
        tokens += count_tokens(batch, hidden)
    return total / max(1, tokens)
