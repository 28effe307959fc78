"""Conditions that are planted in blocks, settings and plans of the models of planted.py."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import Any


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
    "reinit": Condition("re-initialized late", late="reinit"),
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


def draw_positions(family: int, model: int, layers: int, count: int) -> list[int]:
    """Positions of the planted blocks, at random."""
    return random.Random(f"{family}-{model}").sample(range(layers), count)
