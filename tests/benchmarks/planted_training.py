"""Train a model with planted defects.

The loop is written out, because blocks of one model differ in optimizer, data and rate, and enter or stop at a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from planted_conditions import CONDITIONS, HEALTHY, Plan
from planted_models import initialize, matrices, new_model, sample
from torch import Tensor, nn
from transformers import LlamaForCausalLM

# Where a block is late: the share of the steps after which it enters or starts anew.
LATE = 0.9


@dataclass(frozen=True)
class Trained:
    """A model and what only its training knows, for each block: the initial weights, and those at `LATE`."""

    model: LlamaForCausalLM
    distance: list[float]
    update: list[float]


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
                initialize(self.blocks[index], self.fresh, condition)
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
                initialize(self.blocks[index], self.fresh, condition)
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
