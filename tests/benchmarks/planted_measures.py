"""Measures of the blocks of planted models: one JSON line a model. Used by planted.py.

About 1.3 s for a model on one thread: 0.3 s for the weights, 1 s for gradient, KL and cosine. A rescaled copy costs
0.3 s, a copy with a bad block 2.4 s, as its loss is measured too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from planted_conditions import Plan
from planted_derived import DERIVED, rescale, spoil
from planted_jobs import append, load, plan_of, rows_of, trained_rows
from planted_models import loss, windows
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from hf_farms import FarmsConfig, analyze
from hf_farms.reports import BlockSpectrum
from hf_farms.spectra.powerlaw import fit_tail
from hf_farms.spectra.spectrum import LayerSpectrum, layer_spectra

# Windows of the select speeches for gradient, KL and cosine.
WINDOWS = 8
FAMILIES_WITH_DEFECTS = ("development", "test")

WHOLE_MID = FarmsConfig(window_rows=None)
# `released_peak_bound` reproduces the authors' code.
WHOLE_PEAK = FarmsConfig(window_rows=None, fit="peak", released_peak_bound=True)

Shape = Sequence[int]
# Of one whole matrix, oriented so that more should mean less trained.
OF_MATRIX: dict[str, Callable[[LayerSpectrum, Shape], float | None]] = {
    "whole mid": lambda s, _: mid_alpha(s.eigenvalues),
    "whole peak": lambda s, _: s.alpha,
    "stable rank": lambda s, _: s.stable_rank,
    "frobenius": lambda s, _: -math.sqrt(s.frobenius_norm_sq),
    "spectral": lambda s, _: -math.sqrt(s.spectral_norm),
    "entropy": lambda s, _: s.entropy,
    "above edge": lambda s, shape: -share_above_edge(s.eigenvalues, shape),
    "max / median": lambda s, _: -s.spectral_norm / float(s.eigenvalues[s.eigenvalues > 0].median()),
    "participation": lambda s, _: s.frobenius_norm_sq**2 / float(s.eigenvalues.square().sum()),
}
OF_WEIGHTS = ("farms", *OF_MATRIX)
OF_TEXT = ("gradient", "kl", "cosine")
OF_HISTORY = ("distance", "update")
MEASURES = (*OF_WEIGHTS, *OF_TEXT, "depth", *OF_HISTORY)

# Measure -> a value for each block.
Values = dict[str, list[float]]


def mid_alpha(eigenvalues: Tensor) -> float | None:
    alpha = float(fit_tail(eigenvalues[None], WHOLE_MID).alpha)
    return alpha if math.isfinite(alpha) else None


def share_above_edge(eigenvalues: Tensor, shape: Shape) -> float:
    """Share of eigenvalues above the Marchenko-Pastur edge of entries with the variance of the matrix."""
    m, n = shape
    variance = float(eigenvalues.sum()) / (m * n)
    return float((eigenvalues > variance * (math.sqrt(m) + math.sqrt(n)) ** 2).double().mean())


def measure_weights(model: LlamaForCausalLM) -> dict[str, Any]:
    """Measure the spectra of all blocks, on windows and on whole matrices.

    Returns:
        `measures`; `stderr` of FARMS alpha; `layers`, for each role the alphas of its matrices by block.
    """
    blocks = analyze(model).blocks
    records = [block.layers for block in blocks]
    parameters = dict(model.named_parameters())
    names = [record.name for layers in records for record in layers]
    whole = dict(zip(names, layer_spectra([parameters[f"{n}.weight"] for n in names], WHOLE_PEAK), strict=True))
    measures = {"farms": [block.alpha for block in blocks]}
    for name, function in OF_MATRIX.items():
        measures[name] = [_mean([function(whole[r.name], r.shape) for r in layers]) for layers in records]
    return {
        "measures": measures,
        "stderr": [block.alpha_stderr for block in blocks],
        "layers": {role: _layer_alphas(blocks, whole, role) for role in [r.role for r in records[0]]},
    }


def _layer_alphas(
    blocks: Sequence[BlockSpectrum], whole: dict[str, LayerSpectrum], role: str
) -> dict[str, list[float | None]]:
    records = [next(record for record in block.layers if record.role == role) for block in blocks]
    return {
        "farms": [record.alpha for record in records],
        "whole mid": [mid_alpha(whole[record.name].eigenvalues) for record in records],
    }


def _mean(values: Sequence[float | None]) -> float:
    """Average over the matrices that have a value; each role has one matrix."""
    return fmean(value for value in values if value is not None)


def measure_text(model: LlamaForCausalLM) -> Values:
    """Measure what needs tokens: gradient, KL to the model without a block, cosine of input and output."""
    batch = windows("select", WINDOWS)
    inputs, kwargs, handles = [], {}, []

    def watch(block: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        inputs.append(args[0] if args else keywords.pop("hidden_states"))
        kwargs.update(keywords)

    model.zero_grad()
    blocks = list(model.model.layers)
    for block in blocks:
        handles.append(block.register_forward_pre_hook(watch, with_kwargs=True))
    handles.append(model.model.norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
    output = model(input_ids=batch, labels=batch)
    for handle in handles:
        handle.remove()
    output.loss.backward()
    gradients = [_mean([float(p.grad.norm()) for p in block.parameters() if p.ndim == 2]) for block in blocks]
    model.zero_grad()
    with torch.no_grad():
        states = [state.detach() for state in inputs]
        reference = output.logits.detach().log_softmax(-1)
        kl = [_kl_without(model, states[i], i, kwargs, reference) for i in range(len(blocks))]
        cosine = [float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(states)]
    return {"gradient": gradients, "kl": [-value for value in kl], "cosine": cosine}


def _kl_without(
    model: LlamaForCausalLM, hidden: Tensor, block: int, kwargs: dict[str, Any], reference: Tensor
) -> float:
    """Mean KL of the predictions to those without a block: its input goes to the next block."""
    for later in model.model.layers[block + 1 :]:
        hidden = later(hidden, **kwargs)
    without = model.lm_head(model.model.norm(hidden)).log_softmax(-1)
    return float((reference.exp() * (reference - without)).sum(-1).mean())


def measure_model(model: LlamaForCausalLM, history: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return all measures of a model; `history` is its row of the training, if it was trained as it is."""
    row = measure_weights(model)
    row["measures"] |= measure_text(model)
    row["measures"]["depth"] = list(range(len(model.model.layers)))
    for name in OF_HISTORY if history else ():
        row["measures"][name] = [-value for value in history[name]]
    return row


# A name, and the function that measures it.
Job = tuple[str, Callable[[], dict[str, Any]]]


def jobs_of(folder: Path, row: dict[str, Any]) -> Iterator[Job]:
    """The model of a row of trained.jsonl, and those that are made of it."""
    plan = plan_of(row)
    yield plan.name, lambda: measure_model(load(folder, plan), row)
    if plan.group not in FAMILIES_WITH_DEFECTS:
        return
    yield f"{plan.name}-rescaled", lambda: _rescaled(folder, plan)
    for condition in () if plan.planted else DERIVED:
        yield f"{plan.name}-{condition}", lambda condition=condition: _derived(folder, plan, condition, row["select"])


def _rescaled(folder: Path, plan: Plan) -> dict[str, Any]:
    model = load(folder, plan)
    rescale(model, plan.family)
    return {"derived": "rescaled"} | measure_weights(model)


def _derived(folder: Path, plan: Plan, condition: str, before: float) -> dict[str, Any]:
    model = load(folder, plan)
    position = spoil(model, condition, plan.family)
    row: dict[str, Any] = {"derived": condition, "planted": {str(position): condition}}
    row |= {"select before": before, "select after": round(loss(model, "select"), 4)}
    return row | measure_model(model)


def measure_missing(folder: Path, output: Path, part: int = 1, parts: int = 1) -> None:
    """Append the models that are trained and not measured to measured.jsonl."""
    output.mkdir(parents=True, exist_ok=True)
    finished = rows_of(output / "measured.jsonl")
    start, count = time.perf_counter(), 0
    # The file only grows, so that a model keeps its number.
    for row in list(trained_rows(folder).values())[part - 1 :: parts]:
        for name, function in jobs_of(folder, row):
            if name not in finished:
                kept = {key: row[key] for key in ("family", "group", "planted")}
                append(output / "measured.jsonl", {"name": name} | kept | _rounded(function()))
                count += 1
    print(f"{count} models measured in {time.perf_counter() - start:.0f} s")


def _rounded(value: Any) -> Any:
    """Keep six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return {key: _rounded(entry) for key, entry in value.items()} if isinstance(value, dict) else value
