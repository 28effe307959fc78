"""A Fourier neural operator on viscous Burgers data, with and without FarmsLRCallback: relative L2 error.

    python tests/benchmarks/train_burgers.py [--arms none farms ...] [--seeds 0 ...] [--epochs 80]

Data: u_t + u u_x = nu u_xx on a periodic interval, nu = 0.01, from random fields to time 0.5, solved here on 256 points
and learned on every second; the operator maps the first state to the last (FNO: Li et al. 2020, arXiv 2010.08895).
`--check` compares the solver with itself at half the step and at twice the points. Baselines: the first state as
prediction (persistence), and the mean of the last states of the training set.
"""

import math

import torch
from torch import nn
from torch.utils.data import TensorDataset
from training_common import Task, length_of, parser, run

POINTS = 256
STRIDE = 2
VISCOSITY = 0.01
END = 0.5
STEP = 1e-3
SAMPLES = {"train": 1024, "validation": 256, "test": 256}


def random_fields(count, points, *, seed):
    """Gaussian fields `(count, points)` on [0, 1), float64, with covariance 625 (25 - d2/dx2)^-2 on all but scale.

    The pointwise variance is 1. The mean of a field is random too.
    """
    source = torch.Generator().manual_seed(seed)
    k = 2 * math.pi * torch.arange(points // 2 + 1, dtype=torch.float64)
    deviation = 1 / (k**2 + 25)
    # The highest frequency of an even number of points has no sine part; it is left out.
    deviation[-1] = 0
    twice = torch.full_like(deviation, 2.0)
    twice[0] = 1
    deviation /= (twice * deviation**2).sum().sqrt()
    re, im = torch.randn(2, count, len(k), generator=source, dtype=torch.float64)
    spectrum = torch.complex(re, im) * deviation / math.sqrt(2)
    spectrum[:, 0] = re[:, 0] * deviation[0]
    return torch.fft.irfft(spectrum * points, n=points)


def solve_burgers(u, *, viscosity, end, step):
    """States at time `end`: pseudo-spectral in space, fourth-order Runge-Kutta with integrating factor in time.

    The viscous term is solved exactly; frequencies above two thirds are cut from the product (Orszag's rule).

    Args:
        u: `(count, points)` float64, states at time 0 on a periodic grid of [0, 1).
        viscosity: nu.
        end: time.
        step: of time; the last one ends at `end`, so it is made shorter where it does not divide it.
    """
    points = u.shape[-1]
    k = 2 * math.pi * torch.arange(points // 2 + 1, dtype=torch.float64)
    kept = torch.arange(points // 2 + 1) < points / 3
    steps = math.ceil(end / step - 1e-9)
    step = end / steps
    half = torch.exp(-viscosity * k**2 * step / 2)
    factor = -0.5j * k * kept

    def slope(v):
        return factor * torch.fft.rfft(torch.fft.irfft(v, n=points).square())

    v = torch.fft.rfft(u) * kept
    for _ in range(steps):
        a = step * slope(v)
        b = step * slope(half * (v + a / 2))
        c = step * slope(half * v + b / 2)
        d = step * slope(half**2 * v + half * c)
        v = half**2 * (v + a / 6) + half * (b + c) / 3 + d / 6
    return torch.fft.irfft(v, n=points)


def relative_error(found, true):
    """Mean over samples of |found - true| / |true|, L2 norms."""
    return ((found - true).norm(dim=-1) / true.norm(dim=-1)).mean()


class FourierLayer(nn.Module):
    """Multiplies the lowest frequencies by complex matrices, adds a linear map of every point."""

    def __init__(self, width, modes):
        super().__init__()
        scale = 1 / math.sqrt(2 * width)
        self.spectral = nn.Parameter(scale * torch.randn(width, width, modes, dtype=torch.cfloat))
        self.pointwise = nn.Linear(width, width)

    def forward(self, x):
        modes = self.spectral.shape[-1]
        low = torch.fft.rfft(x, dim=1)[:, :modes]
        mixed = torch.einsum("bki,iok->bko", low, self.spectral)
        return torch.fft.irfft(mixed, n=x.shape[1], dim=1) + self.pointwise(x)


class FourierOperator(nn.Module):
    """States `(batch, points)` to states; with labels also the relative error as loss."""

    def __init__(self, width=48, modes=24, depth=4):
        super().__init__()
        self.lift = nn.Linear(2, width)
        self.layers = nn.ModuleList([FourierLayer(width, modes) for _ in range(depth)])
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 1))

    def forward(self, states, labels=None):
        place = torch.linspace(0, 1, states.shape[1] + 1, device=states.device)[:-1].expand_as(states)
        x = self.lift(torch.stack([states, place], -1))
        for layer in self.layers:
            x = x + nn.functional.gelu(layer(x))
        found = self.project(x)[..., 0]
        return {"logits": found} if labels is None else {"loss": relative_error(found, labels), "logits": found}


def solved(seed, counts, points=POINTS):
    """First and last states of each split, float32, on every second point."""
    first = random_fields(sum(counts), points, seed=seed)
    last = solve_burgers(first, viscosity=VISCOSITY, end=END, step=STEP)
    parts = [x[:, ::STRIDE].float().split(counts) for x in (first, last)]
    return [TensorDataset(*pair) for pair in zip(*parts, strict=True)]


def collate(rows):
    first, last = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"states": first, "labels": last}


def burgers_task(train, validation, test, **arguments):
    return Task(
        model=FourierOperator,
        train=train,
        validation=validation,
        test=test,
        score=lambda found: found["eval_loss"],
        arguments={
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 256,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            # Fused AdamW takes no complex weights.
            "optim": "adamw_torch",
            "weight_decay": 1e-4,
            "label_names": ["labels"],
            "remove_unused_columns": False,
            **arguments,
        },
        trainer={"data_collator": collate},
    )


def check_solver():
    """Print how far the solutions are from finer ones, and what they keep and lose."""
    fine = random_fields(32, 2 * POINTS, seed=1)
    coarse = fine[:, ::2]
    options = {"viscosity": VISCOSITY, "end": END}
    last = solve_burgers(coarse, **options, step=STEP)
    halved = solve_burgers(coarse, **options, step=STEP / 2)
    doubled = solve_burgers(fine, **options, step=STEP / 2)[:, ::2]
    print(f"half the step: {relative_error(last, halved):.1e}, twice the points: {relative_error(last, doubled):.1e}")
    drift = (last.mean(-1) - coarse.mean(-1)).abs().max()
    energy = last.square().mean(-1) / coarse.square().mean(-1)
    print(f"mean changes by at most {drift:.1e}; energy left {energy.min():.2f} to {energy.max():.2f}")


def main(arguments=None):
    found = parser(__doc__, epochs=80, lr=2e-3)
    found.add_argument("--samples", nargs=3, type=int, default=list(SAMPLES.values()), help="train, validation, test")
    found.add_argument("--check", action="store_true", help="compare the solver with finer ones, and stop")
    options = found.parse_args(arguments)
    if options.check:
        return check_solver()
    parts = solved(0, options.samples)
    first, last = parts[2].tensors
    mean = parts[0].tensors[1].mean(0)
    baselines = {
        "persistence, test": float(relative_error(first, last)),
        "mean, test": float(relative_error(mean, last)),
    }
    return run(burgers_task(*parts, **length_of(options)), options, metric="relative L2", baselines=baselines)


if __name__ == "__main__":
    main()
