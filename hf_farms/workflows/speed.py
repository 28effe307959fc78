"""Measure the speed of a model in a second or a few, for an estimate of long work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_farms.config import FarmsConfig
from hf_farms.metrics.nll import window_losses
from hf_farms.pruning.patterns import lowest_per_row
from hf_farms.spectra.spectrum import layer_spectra
from hf_farms.spectra.windows import plan_windows
from hf_farms.workflows.estimate import Speed

if TYPE_CHECKING:
    from hf_farms.blocks import ModelBlockSource

__all__ = ["measure_speed"]

# Tokens of the timed calls on a CPU; and on devices that need more to be busy, and of small models, whose calls take
# less time than the threads of a busy machine wait for each other.
CPU_TOKENS, TOKENS = 128, 512
SMALL_WIDTH = 1024
# Rows and columns of the timed comparison; rows of the timed windows at most.
SIDE, ROWS = 1024, 512
# A call is repeated for so many seconds, up to so many times.
SECONDS, CALLS = 0.5, 6
# Windows along each side of the matrix whose spectrum is timed.
WINDOWS = 4


def measure_speed(source: ModelBlockSource, ids: Tensor | None, config: FarmsConfig, rows: int | None) -> Speed:
    """Time one block, the head, a comparison of weights, and a spectrum.

    The block is the middle one: the first ones of a model may be of another kind. A streamed model reads it from disk.

    Args:
        source: the dense blocks.
        ids: some tokens of a text; None if the prune runs no text through the model.
        config: of the spectra.
        rows: window rows of the model; None for whole matrices.

    Raises:
        ModelError: the blocks cannot be run one after another.
    """
    device = source.device
    small = (getattr(source.config, "hidden_size", None) or SMALL_WIDTH) < SMALL_WIDTH
    tokens = CPU_TOKENS if device.type == "cpu" and not small else TOKENS
    block, head = _text_speed(source, ids[:tokens]) if ids is not None else (0.0, 0.0)
    # Of its own: the numbers of the prune do not depend on whether somebody wants an estimate.
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.rand(SIDE, SIDE, device=device, generator=generator)
    weight = _seconds(lambda: lowest_per_row(scores, SIDE * SIDE // 2), device) / scores.numel()
    side = min(rows or ROWS, ROWS)
    options = replace(config, window_rows=side, windows_per_dim=WINDOWS)
    cols = round(side * config.aspect_ratio)
    matrix = torch.randn(WINDOWS * side, WINDOWS * cols, device=device, generator=generator)
    plan = plan_windows(matrix.shape[0], matrix.shape[1], options)
    short, long = sorted((plan.rows, plan.cols))
    cost = plan.num_windows * short * short * (long + 4.0 * short)
    spectrum = _seconds(lambda: layer_spectra([matrix], options, plans=[plan]), device)
    return Speed(block=block, head=head, weight=weight, multiply_add=spectrum / cost)


def _text_speed(source: ModelBlockSource, ids: Tensor) -> tuple[float, float]:
    """Return the seconds of a token in one block, and in the head."""
    batch = {"input_ids": ids[None].to(source.device)}
    with source.evaluation(), torch.no_grad():
        calls = source.capture(batch, repeats=True)
        index = len(source) // 2
        block = source.open(index)
        seconds = _seconds(lambda: block(calls.hidden, calls.arguments[index]), source.device)

        def predict() -> object:
            logits = getattr(source.output(batch, calls.hidden), "logits", None)
            return window_losses(logits, batch["input_ids"]) if logits is not None else None

        return seconds / len(ids), _seconds(predict, source.device) / len(ids)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the fastest of a few calls: the first one allocates, and other programs disturb."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds = [timed(), timed()]
    while sum(seconds) < SECONDS and len(seconds) < CALLS:
        seconds.append(timed())
    return min(seconds)
