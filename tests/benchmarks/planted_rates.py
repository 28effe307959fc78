"""Do layer-wise rates help where it is known which blocks are under-trained?

    python tests/benchmarks/planted_rates.py FOLDER --setups late late-long bottleneck slow --arms none oracle
    python tests/benchmarks/planted_rates.py FOLDER --report

FOLDER holds the models that `planted.py train` writes.

Four set-ups, ten models each:

- `late`: the models with two blocks inserted late go on for 300 steps.
- `late-long`: the same for 1,000 steps.
- `bottleneck`: in healthy trained models (families 300 to 309) the first block and one other get new random weights,
  and the model goes on for 300 steps.
- `slow`: training from the start, 500 steps, in which two blocks have a tenth of the rate throughout; factors apply
  from the first measurement on, after a tenth of the steps.

Every arm has the same initial weights, order of data, fresh AdamW, rewarmed cosine (peak 0.003; `slow`: 0.006), and the
same parameter-weighted mean of the logarithm of the factors: 0. Arms: `none`; `oracle` (planted blocks times 3);
`farms`, `norm`: the map of FarmsLRConfig (0.5 to 1.5) on alphas or on minus the Frobenius norm, measured every tenth of
the steps; `deranged`: the factors of `farms` on other blocks; `farms-ends`: with the option `ends` (--ends);
`constant`: `oracle` with weight decay divided by the factor.

Gate: the oracle must lower the loss on the select speeches in a set-up, mean over ten models by more than two paired
standard errors and by at least 0.005. The other arms run only in set-ups that pass.

Predictions, before a run: `late` and `late-long` do not pass (less than 0.005), `bottleneck` does not pass, `slow` does
(0.01 to 0.05); in `slow`, `farms` gains at most half of what the oracle gains, `norm` as much as `farms`, `deranged`
loses.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from planted_conditions import Setting, draw_positions
from planted_jobs import ACTING, append, healthy, json_lines, load, two_late
from planted_models import initialize, loss, matrices, new_model, sample
from planted_training import schedule
from torch import nn

from hf_farms import FarmsLRConfig, analyze
from hf_farms.allocation.lr import lr_factors
from hf_farms.config.ends import LR_ENDS

ARMS = ("none", "oracle", "farms", "farms-ends", "norm", "deranged", "constant")
ORACLE = 3.0
GATE = 0.005
BATCH = 2
Factors = Callable[[nn.Module], list[float]]


@dataclass(frozen=True)
class Setup:
    """Steps, peak rate, and how the model with its planted blocks is made."""

    steps: int
    peak: float
    make: Callable[[Path, int], tuple[nn.Module, list[int]]]
    handicap: float = 1.0


def _late(folder: Path, family: int) -> tuple[nn.Module, list[int]]:
    plan = two_late(family)
    return load(folder, plan), list(plan.planted)


def _bottleneck(folder: Path, family: int) -> tuple[nn.Module, list[int]]:
    plan = healthy(family - ACTING.start + 300, "healthy")
    model = load(folder, plan)
    planted = [0, 1 + draw_positions(family, 1, plan.setting.layers - 1, 1)[0]]
    for index in planted:
        initialize(model.model.layers[index], torch.Generator().manual_seed(family + index))
    return model, planted


def _slow(folder: Path, family: int) -> tuple[nn.Module, list[int]]:
    setting = Setting()
    return new_model(setting, family + 50), draw_positions(family, 2, setting.layers, 2)


SETUPS = {
    "late": Setup(300, 3e-3, _late),
    "late-long": Setup(1000, 3e-3, _late),
    "bottleneck": Setup(300, 3e-3, _bottleneck),
    "slow": Setup(500, 6e-3, _slow, handicap=0.1),
}


def centered(factors: Sequence[float]) -> list[float]:
    """Divide by the geometric mean; blocks have equal numbers of parameters."""
    mean = math.exp(statistics.fmean(map(math.log, factors)))
    return [factor / mean for factor in factors]


def norms(model: nn.Module) -> list[float]:
    return [math.sqrt(sum(float(w.detach().square().sum()) for w in matrices(b))) for b in model.model.layers]


def derangement(count: int, seed: int) -> list[int]:
    """A random order in which nothing stays in its place."""
    generator = random.Random(seed)
    while True:
        order = generator.sample(range(count), count)
        if all(i != j for i, j in enumerate(order)):
            return order


def factors_of(arm: str, planted: Sequence[int], family: int, ends: str) -> Factors:
    """What the arm computes its factors from; called at each measurement."""

    def oracle(model: nn.Module) -> list[float]:
        return [ORACLE if i in planted else 1.0 for i in range(len(model.model.layers))]

    def by_norm(model: nn.Module) -> list[float]:
        return lr_factors([2 + max(norms(model)) - norm for norm in norms(model)])

    def by_alpha(model: nn.Module, config: FarmsLRConfig | None = None) -> list[float]:
        from hf_farms.allocation.lr import allocate_lr

        report = analyze(model)
        factors = allocate_lr(report, config=config)
        return [factors[block.layers[0].name] for block in report.blocks]

    def deranged(model: nn.Module) -> list[float]:
        factors = by_alpha(model)
        return [factors[i] for i in derangement(len(factors), family)]

    known: dict[str, Factors] = {
        "none": lambda model: [1.0] * len(model.model.layers),
        "oracle": oracle,
        "constant": oracle,
        "farms": by_alpha,
        "farms-ends": lambda model: by_alpha(model, FarmsLRConfig(ends=ends, interval=0.1)),
        "norm": by_norm,
        "deranged": deranged,
    }
    return known[arm]


def run(folder: Path, setup: Setup, family: int, arm: str, ends: str = "first-apart") -> dict[str, object]:
    """Train one arm, and measure its losses."""
    model, planted = setup.make(folder, family)
    model.train()
    blocks = list(model.model.layers)
    rest = [p for name, p in model.named_parameters() if ".layers." not in name]
    groups: list[dict[str, object]] = [{"params": rest, "weight_decay": 0.0, "block": None}]
    for index, block in enumerate(blocks):
        groups.append({"params": matrices(block), "weight_decay": 0.1, "block": index})
        groups.append({"params": [p for p in block.parameters() if p.ndim == 1], "weight_decay": 0.0, "block": index})
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)
    order = torch.Generator().manual_seed(family)
    compute = factors_of(arm, planted, family, ends)
    first = setup.steps // 10 if setup.handicap != 1 else 0
    factors = [1.0] * len(blocks)
    for step in range(setup.steps):
        if step >= first and step % (setup.steps // 10) == 0:
            factors = centered(compute(model))
        for group in optimizer.param_groups:
            index = group["block"]
            own = 1.0 if index is None else factors[index]
            handicap = setup.handicap if index in planted else 1.0
            group["lr"] = setup.peak * schedule(step, setup.steps) * own * handicap
            if arm == "constant" and group["weight_decay"]:
                group["weight_decay"] = 0.1 / own
        batch = sample(order, BATCH)
        model(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    losses = {split: round(loss(model, split, None), 4) for split in ("select", "test")}
    return {"planted": planted, "factors": [round(f, 3) for f in factors], **losses}


def run_missing(folder: Path, setups: Sequence[str], arms: Sequence[str], ends: str) -> None:
    path = folder / "rates.jsonl"
    done = {(row["setup"], row["family"], row["arm"], row.get("ends")) for row in json_lines(path)}
    for name in setups:
        for family in ACTING:
            for arm in arms:
                used = ends if arm == "farms-ends" else None
                if (name, family, arm, used) not in done:
                    result = run(folder, SETUPS[name], family, arm, ends)
                    row = {"setup": name, "family": family, "arm": arm, "ends": used, **result}
                    append(path, row)
                    print(name, family, arm, row["select"], row["test"], flush=True)


def report(folder: Path) -> None:
    """Print differences to `none`, mean over models ± paired standard error."""
    rows = json_lines(folder / "rates.jsonl")
    table = {(row["setup"], row["family"], row["arm"]): row for row in rows}
    print("| set-up | arm | models | select | test |\n|---|---|---|---|---|")
    for name in SETUPS:
        for arm in ARMS[1:]:
            families = [f for f in ACTING if (name, f, arm) in table and (name, f, "none") in table]
            if len(families) > 1:
                gains = [
                    paired([table[name, f, arm][split] - table[name, f, "none"][split] for f in families])  # type: ignore[operator]
                    for split in ("select", "test")
                ]
                cells = " | ".join(f"{mean:+.4f} ± {error:.4f}" for mean, error in gains)
                print(f"| {name} | {arm}{gate(*gains[0]) if arm == 'oracle' else ''} | {len(families)} | {cells} |")


def paired(differences: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def gate(mean: float, error: float) -> str:
    return f" (gate {'passed' if -mean >= max(GATE, 2 * error) else 'not passed'})"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["none", "oracle"])
    parser.add_argument("--ends", choices=LR_ENDS, default="first-apart", help="of the arm farms-ends")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.report:
        report(options.folder)
    else:
        run_missing(options.folder, options.setups, options.arms, options.ends)


if __name__ == "__main__":
    main()
