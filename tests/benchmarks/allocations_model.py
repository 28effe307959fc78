"""The model of allocations.py, its calibration sequences, and losses of every window."""

from __future__ import annotations

import argparse
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_farms import PruneConfig, SpectralReport, analyze
from hf_farms.blocks import ModelBlockSource
from hf_farms.config import CalibrationConfig, SelectionConfig
from hf_farms.data.calibration import calibration_sequences
from hf_farms.data.selection import selection_sequences
from hf_farms.data.texts import read_text
from hf_farms.pruning import outliers
from hf_farms.pruning.removal_plan import plan_targets


@dataclass(kw_only=True)
class Subject:
    """The dense model, which `restore` brings back, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: Any

    def __post_init__(self) -> None:
        self._weights = {name: value.clone() for name, value in self.model.state_dict().items()}

    @classmethod
    def load(cls, options: argparse.Namespace) -> Subject:
        """Load the model of the command line."""
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        return cls(model=model.eval().to(options.device), tokenizer=AutoTokenizer.from_pretrained(options.model))

    def restore(self) -> None:
        """Make the model dense again."""
        self.model.load_state_dict(self._weights)

    @cached_property
    def spectra(self) -> dict[str, SpectralReport]:
        """Reports of the dense model for `farms` and `alpha`."""
        self.restore()
        return {name: analyze(self.model, PruneConfig(allocation=name).measurement()) for name in ("farms", "alpha")}


def calibration(
    subject: Subject,
    options: argparse.Namespace,
    *,
    seed: int,
    sequences: int | None = None,
    continuations: int = 0,
) -> list[Tensor]:
    """Sequences of a seed, and continuations that the dense model writes once for all cells of the folder."""
    config = CalibrationConfig(
        source=options.calibration,
        num_sequences=sequences or options.sequences,
        num_continuations=continuations,
        seed=seed,
    )
    if not continuations:
        return _written(subject, config)
    path = options.folder / f"text-{seed}-{config.num_sequences}-{continuations}.pt"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            torch.save(_written(subject, config), unfinished)
            unfinished.replace(path)
    batches: list[Tensor] = torch.load(path)
    return batches


def _written(subject: Subject, config: CalibrationConfig) -> list[Tensor]:
    subject.restore()
    return calibration_sequences(config, model=subject.model, tokenizer=subject.tokenizer)[0]


def selection(subject: Subject, options: argparse.Namespace) -> list[Tensor]:
    """Sequences of the selection text."""
    config = SelectionConfig(source=options.selection)
    return selection_sequences(config, model=subject.model, tokenizer=subject.tokenizer)[0]


@contextmanager
def with_outlier_bound(bound: float) -> Iterator[None]:
    """Count an outlier of OWL from another multiple of the mean."""
    before = outliers.OUTLIER
    outliers.OUTLIER = bound
    try:
        yield
    finally:
        outliers.OUTLIER = before


def placebo(report: SpectralReport, how: str) -> SpectralReport:
    """The scores of the blocks in another order."""
    order = list(range(len(report.blocks)))
    if how == "shuffled":
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(0)).tolist()
    elif how == "reversed":
        order.reverse()
    else:
        order.sort(key=lambda index: report.blocks[index].alpha or 0.0)
    source = [report.blocks[index] for index in order]
    blocks = [
        replace(b, alpha=s.alpha, alpha_stderr=s.alpha_stderr) for b, s in zip(report.blocks, source, strict=True)
    ]
    return replace(report, blocks=tuple(blocks))


def first_alone(subject: Subject, config: PruneConfig) -> list[float]:
    """Sparsities of blocks of one size: the first as `farms` has it, the others alike."""
    plan = plan_targets(ModelBlockSource(subject.model), config, spectra=subject.spectra["farms"])
    first = next(iter(plan[0].values()))
    rest = (config.sparsity * len(plan) - first) / (len(plan) - 1)
    return [first, *[rest] * (len(plan) - 1)]


class Windows:
    """Windows of a text, with the dense model's hidden states in front of the head.

    Args:
        subject: dense.
        path: the text, or "speeches".
        count: number of windows.
        context: tokens of a window.
    """

    def __init__(self, subject: Subject, path: str, *, count: int, context: int) -> None:
        text = read_text(path, column="text", subset=None, split="test")
        ids = subject.tokenizer(text, verbose=False)["input_ids"]
        windows = torch.tensor(ids[: len(ids) // context * context]).view(-1, context)[:count]
        self._windows = windows.to(subject.model.device)
        subject.restore()
        self._dense = [self._hidden(subject, window) for window in self._windows]

    @staticmethod
    def _hidden(subject: Subject, window: Tensor) -> Tensor:
        body = subject.model.base_model
        hidden: Tensor = body(input_ids=window[None], use_cache=False).last_hidden_state[0, :-1]
        return hidden

    def losses(self, subject: Subject) -> tuple[list[float], list[float]]:
        """NLL and KL(dense || model) of every window, in nats per token."""
        nll, kl = [], []
        head = subject.model.get_output_embeddings()
        for window, dense in zip(self._windows, self._dense, strict=True):
            per_token = token_losses(head(self._hidden(subject, window)), head(dense), window[1:])
            nll.append(per_token[0].double().mean().item())
            kl.append(per_token[1].double().mean().item())
        return nll, kl


def token_losses(logits: Tensor, dense: Tensor, targets: Tensor) -> Tensor:
    """NLL and KL(dense || model) of every token, `(2, tokens)`; a few rows at a time stay in the cache of a CPU."""
    parts, rows = [], 8 if logits.device.type == "cpu" else len(logits)
    for q, p, target in zip(logits.split(rows), dense.split(rows), targets.split(rows), strict=True):
        q, p = q.float().log_softmax(-1), p.float().log_softmax(-1)
        parts.append(torch.stack((-q.gather(1, target[:, None])[:, 0], (p.exp() * (p - q)).sum(-1))))
    return torch.cat(parts, 1)
