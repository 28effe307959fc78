"""Small Llamas with planted defects: conditions, plans, and the training loop. Used by planted.py.

The loop is written out, because blocks of one model differ in optimizer, data and rate, and enter or stop at a step.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch
from demo_data import CONTEXT, VOCABULARY, tokens_of, train_tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

DEVIATION = 0.02
# Where a block is late: the share of the steps after which it enters or starts anew.
LATE = 0.9


@dataclass(frozen=True)
class Condition:
    """What is done to one block. Shares are of the steps of the training.

    Attributes:
        kind: what a result is reported under.
        rate: factor of the learning rate.
        freeze: share after which the block no longer changes.
        late: "reinit": starts anew after `LATE`; "insert": the model has no such block before.
        deviation: factor of the initial standard deviation.
        tail: degrees of freedom of a Student t that gives the initial weights, at the norm of the normal ones.
        decay: weight decay instead of that of the model.
        optimizer: "adamw" or "muon", for the matrices.
        data: what the gradients of this block are computed on; "shuffled" has the tokens of each window in random
            order, "subset" is the same eight windows throughout.
    """

    kind: str
    rate: float = 1.0
    freeze: float | None = None
    late: str | None = None
    deviation: float = 1.0
    tail: float | None = None
    decay: float | None = None
    optimizer: str = "adamw"
    data: str = "text"


HEALTHY = Condition("healthy")
DEFECTS = {
    "rate-0.03": Condition("learning rate", rate=0.03),
    "rate-0.1": Condition("learning rate", rate=0.1),
    "rate-0.3": Condition("learning rate", rate=0.3),
    "rate-0.6": Condition("learning rate", rate=0.6),
    "freeze-10": Condition("frozen", freeze=0.1),
    "freeze-30": Condition("frozen", freeze=0.3),
    "freeze-60": Condition("frozen", freeze=0.6),
    "reinit": Condition("re-initialised late", late="reinit"),
    "insert": Condition("inserted late", late="insert"),
}
# Healthy, but may look bad.
SUSPECTS = {
    "deviation-3": Condition("trap: looks bad", deviation=3.0),
    "decay": Condition("trap: looks bad", decay=1.0),
    "muon": Condition("trap: looks bad", optimizer="muon"),
}
# Bad, but may look healthy.
DISGUISES = {
    "shuffled": Condition("trap: looks healthy", data="shuffled"),
    "memorised": Condition("trap: looks healthy", data="subset"),
    "heavy-init": Condition("trap: looks healthy", tail=2.5, freeze=0.0),
    "rate-3": Condition("trap: looks healthy", rate=3.0),
    "rate-10": Condition("trap: looks healthy", rate=10.0),
}
CONDITIONS = {**DEFECTS, **SUSPECTS, **DISGUISES}


@dataclass(frozen=True)
class Setting:
    """Size and training of a model. `widths` gives each block its feed-forward width; empty: all have `width`."""

    layers: int = 8
    hidden: int = 96
    width: int = 256
    widths: tuple[int, ...] = ()
    steps: int = 500
    batch: int = 2
    rate: float = 6e-3
    decay: float = 0.1


@dataclass(frozen=True)
class Plan:
    """One model: its family (the seed of initial weights and order of the data), setting and planted conditions."""

    name: str
    family: int
    group: str
    setting: Setting = Setting()
    planted: dict[int, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """A model and what only its training knows, for each block: the initial weights, and those at `LATE`."""

    model: LlamaForCausalLM
    distance: list[float]
    update: list[float]


@cache
def tokens(split: str) -> Tensor:
    return tokens_of(split, train_tokenizer())


def windows(split: str, count: int | None = None) -> Tensor:
    """The first consecutive windows of a split."""
    text = tokens(split)
    return text[: len(text) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)[:count]


def new_model(setting: Setting, family: int) -> LlamaForCausalLM:
    torch.manual_seed(family)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=setting.hidden,
        intermediate_size=setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        use_cache=False,
        initializer_range=DEVIATION,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for block, width in zip(model.model.layers, setting.widths, strict=False):
        block.mlp = LlamaMLP(replace_width(config, width))
        initialise(block.mlp, torch.Generator().manual_seed(family + width))
    return model


def replace_width(config: LlamaConfig, width: int) -> LlamaConfig:
    own = copy.copy(config)
    own.intermediate_size = width
    return own


def matrices(block: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in block.parameters() if parameter.ndim == 2]


@torch.no_grad()
def initialise(block: nn.Module, generator: torch.Generator, condition: Condition = HEALTHY) -> None:
    """Draw the matrices anew, normal or with heavy tails at the same norm."""
    for weight in matrices(block):
        normal = torch.randn(weight.shape, generator=generator)
        if condition.tail is not None:
            chi = torch.distributions.Chi2(condition.tail).sample(weight.shape)
            heavy = normal * (condition.tail / chi).sqrt()
            normal = heavy * normal.norm() / heavy.norm()
        weight.copy_(DEVIATION * condition.deviation * normal)


def sample(generator: torch.Generator, batch: int) -> Tensor:
    """Random windows of the train split."""
    text = tokens("train")
    starts = torch.randint(len(text) - CONTEXT, (batch,), generator=generator)
    return torch.stack([text[start : start + CONTEXT] for start in starts])


def schedule(step: int, steps: int) -> float:
    """Warm up over a tenth of the steps, then follow a cosine to a tenth of the peak."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Training:
    """The state of one training: optimizers with a group for each block, and the blocks in the model."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.setting = plan, plan.setting
        self.model = new_model(plan.setting, plan.family)
        self.blocks = list(self.model.model.layers)
        self.planted = {index: CONDITIONS[name] for index, name in plan.planted.items()}
        self.fresh = torch.Generator().manual_seed(plan.family + 1)
        for index, condition in self.planted.items():
            if condition.deviation != 1:
                _scale(self.blocks[index], condition.deviation)
            if condition.tail is not None:
                torch.manual_seed(plan.family + index)
                initialise(self.blocks[index], self.fresh, condition)
        self.initial = [_copy(block) for block in self.blocks]
        self.optimizers = self._optimizers()
        absent = [i for i, condition in self.planted.items() if condition.late == "insert"]
        self._place([block for i, block in enumerate(self.blocks) if i not in absent])

    def _place(self, blocks: list[nn.Module]) -> None:
        self.model.model.layers = nn.ModuleList(blocks)
        self.model.config.num_hidden_layers = len(blocks)
        for position, block in enumerate(blocks):
            block.self_attn.layer_idx = position

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        rest = [p for name, p in self.model.named_parameters() if ".layers." not in name]
        groups: list[dict[str, Any]] = [{"params": rest, "block": None, "weight_decay": 0.0}]
        muon = []
        for index, block in enumerate(self.blocks):
            condition = self.planted.get(index, HEALTHY)
            decay = self.setting.decay if condition.decay is None else condition.decay
            gains = [p for p in block.parameters() if p.ndim == 1]
            groups.append({"params": gains, "block": index, "weight_decay": 0.0})
            target = muon if condition.optimizer == "muon" else groups
            target.append({"params": matrices(block), "block": index, "weight_decay": decay})
        found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)]
        if muon:
            # Updates as large as those of AdamW, as its authors advise.
            found.append(torch.optim.Muon(muon, lr=0.0, adjust_lr_fn="match_rms_adamw"))
        return found

    def run(self) -> Trained:
        order = torch.Generator().manual_seed(self.plan.family + 2)
        steps = self.setting.steps
        late = round(LATE * steps)
        before: list[list[Tensor]] = []
        for step in range(steps):
            if step == late:
                self._start_late()
                before = [_copy(block) for block in self.blocks]
            self._set_rates(step)
            self._backward(sample(order, self.setting.batch), step)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return Trained(
            self.model.eval(),
            [_distance(block, start) for block, start in zip(self.blocks, self.initial, strict=True)],
            [_distance(block, start) for block, start in zip(self.blocks, before, strict=True)],
        )

    def _start_late(self) -> None:
        for index, condition in self.planted.items():
            if condition.late == "reinit":
                initialise(self.blocks[index], self.fresh, condition)
                self.initial[index] = _copy(self.blocks[index])
                for parameter in self.blocks[index].parameters():
                    self.optimizers[0].state.pop(parameter, None)
        self._place(self.blocks)

    def _set_rates(self, step: int) -> None:
        now = self.setting.rate * schedule(step, self.setting.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                condition = self.planted.get(group["block"], HEALTHY)
                frozen = condition.freeze is not None and step >= condition.freeze * self.setting.steps
                group["lr"] = 0.0 if frozen else now * condition.rate

    def _backward(self, batch: Tensor, step: int) -> None:
        self.model(input_ids=batch, labels=batch).loss.backward()
        for index, condition in self.planted.items():
            if condition.data == "text":
                continue
            other = self._other_batch(condition.data, batch, step)
            loss = self.model(input_ids=other, labels=other).loss
            parameters = list(self.blocks[index].parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def _other_batch(self, data: str, batch: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.plan.family * 100_000 + step)
        if data == "shuffled":
            return batch[:, torch.randperm(batch.shape[1], generator=generator)]
        subset = sample(torch.Generator().manual_seed(self.plan.family), 8)
        return subset[torch.randperm(8, generator=generator)[: len(batch)]]


def train(plan: Plan) -> Trained:
    """Train a model as planned; cost grows with steps times tokens of a step."""
    return Training(plan).run()


@torch.no_grad()
def _scale(block: nn.Module, factor: float) -> None:
    for weight in matrices(block):
        weight.mul_(factor)


def _copy(block: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in matrices(block)]


def _distance(block: nn.Module, start: list[Tensor]) -> float:
    return math.sqrt(sum(float((w.detach() - s).square().sum()) for w, s in zip(matrices(block), start, strict=True)))


@torch.no_grad()
def loss(model: nn.Module, split: str, count: int | None = 64) -> float:
    """Mean loss for each token over the first windows of a split."""
    data = windows(split, count)
    parts = [float(model(input_ids=part, labels=part).loss) * len(part) for part in data.split(16)]
    return sum(parts) / len(data)


def draw_positions(family: int, model: int, layers: int, count: int) -> list[int]:
    """Positions of the planted blocks, at random."""
    return random.Random(f"{family}-{model}").sample(range(layers), count)


__all__ = [
    "CONDITIONS",
    "DEFECTS",
    "DISGUISES",
    "SUSPECTS",
    "Condition",
    "Plan",
    "Setting",
    "Trained",
    "draw_positions",
    "initialise",
    "loss",
    "matrices",
    "new_model",
    "replace",
    "sample",
    "schedule",
    "tokens",
    "train",
    "windows",
]
