"""Distillation of a whole pruned model: the recovery `distill` names the function of this file.

Embeddings, final norm and head are those of both models, so that the hidden states of the dense model behind its last
block stand for its predictions, and no second model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_farms.blocks import BlockSource, LayerView, ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.distillation.student import HiddenByIndex, Student
from hf_farms.distillation.training import TrainingSettings, train
from hf_farms.errors import ModelError
from hf_farms.metrics.divergence import count_tokens, divergences, final_hidden
from hf_farms.progress import Progress
from hf_farms.pruning.kept_weights import round_kept
from hf_farms.pruning.recovery import passes_text
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.pruning.submodule_calls import fit_dtype
from hf_farms.pruning.training_folder import TrainingFolder
from hf_farms.reports import DistillationRecord

__all__ = ["HELD_OUT", "distill", "training_bytes"]

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

    The defaults of passes and learning rate are those with the lowest KL in trials on the demo; three times the passes
    gained a quarter more, and rates from 0.03 on made it worse (figures in the registry).

    Time: for each pass a forward and a backward pass of the calibration data through the whole model, and three times
    the product of its head. Memory: see `training_bytes`.

    Args:
        source: the pruned model in memory.
        config: passes and learning rate.
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
    weights = trained_weights(source)
    if folder is not None:
        TrainingFolder(folder, config, batches).mark(weights)
    stage = f"distill ({passes_text(config.effective_passes)}, up to {training_bytes(source) / 2**30:.2f} GiB)"
    before = _divergence(source, batches, dense, held_out)
    if not math.isfinite(before):
        raise ModelError(
            f"predictions of the pruned model must be finite for recover={config.recover!r}, got NaN or infinity.",
            hint="Load the model in bfloat16 or float32, or choose a lower sparsity.",
        )
    pruned = {name: weight.data.clone() for name, weight in weights.items()}
    bfloat16 = fit_dtype(source.model) == torch.bfloat16
    settings = TrainingSettings(
        passes=config.effective_passes, rate=config.effective_rate, bfloat16=bfloat16, folder=folder
    )
    progress(f"{stage}: KL {before:.4g}", 0, len(fitted) * settings.passes)
    with _trainable(source.model, weights, pruned), torch.enable_grad():
        steps = train(
            Student(source, batches, dense, bfloat16=bfloat16),
            source.model,
            weights,
            fitted,
            settings,
            tick=lambda done, total, loss: progress(f"{stage}: KL {loss:.4g}", done, total),
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.data = round_kept(weight.data, pruned[name])
    after = _divergence(source, batches, dense, held_out)
    # Not `>=`: NaN is refused too.
    accepted = after < before
    if not accepted:
        for name, weight in weights.items():
            weight.data = pruned[name]
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


def trained_weights(source: ModelBlockSource) -> dict[str, nn.Parameter]:
    """Return the parameters of all pruned layers by name, in the order of the blocks."""
    layers = [layer for index in range(len(source)) for layer in prunable_layers(source.open(index).layers)]
    parameters = {layer.metadata.parameter: getattr(layer.module, _attribute(layer)) for layer in layers}
    return {name: parameter for name, parameter in parameters.items() if isinstance(parameter, nn.Parameter)}


def training_bytes(source: ModelBlockSource) -> int:
    """Return the memory of the training: the model in float32, of each trained weight its gradient, two moments of Adam
    and the weight before, in the dtype of the model. Hidden states of the calibration data, and the activations of one
    sequence, come on top.
    """
    trained = trained_weights(source).values()
    everything = sum(parameter.numel() for parameter in source.model.parameters())
    return 4 * everything + sum(weight.numel() * (3 * 4 + weight.dtype.itemsize) for weight in trained)


def _attribute(layer: LayerView) -> str:
    return layer.metadata.parameter.rpartition(".")[2]


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


@contextmanager
def _trainable(model: nn.Module, weights: Mapping[str, nn.Parameter], start: Mapping[str, Tensor]) -> Iterator[None]:
    """Have the model in float32 in the context, with these weights as the only ones that get gradients.

    After an error all weights are as they were at the start; else the trained ones stay in float32.
    """
    before = [(p, p.data.dtype, p.requires_grad) for p in model.parameters()]
    trained = {id(weight) for weight in weights.values()}
    try:
        for parameter, dtype, _ in before:
            if dtype.is_floating_point:
                # float64 stays: the weights that are not trained must come back with the same bits.
                parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
            parameter.requires_grad_(id(parameter) in trained)
        yield
    except BaseException:
        for name, weight in weights.items():
            weight.data = start[name].clone()
        raise
    finally:
        for parameter, dtype, learned in before:
            parameter.grad = None
            if id(parameter) not in trained:
                parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(learned)
