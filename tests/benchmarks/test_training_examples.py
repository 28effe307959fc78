"""The training scripts of tests/benchmarks, small: data of Burgers' equation, placebos, and each script to its end."""

import io
import math
from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import train_burgers
import train_images
import train_text
from models import tiny
from PIL import Image
from train_burgers import random_fields, relative_error, solve_burgers
from training_common import DECAY, PLACEBOS, placebo_factors

from hf_farms import analyze
from hf_farms.demo import demo_text

pytestmark = pytest.mark.filterwarnings("ignore:No layout is known", "ignore:.*pin_memory.*")


def cole_hopf(u, *, viscosity, time):
    """The exact solution: u = -2 nu phi_x / phi, where phi obeys the heat equation. For fields of mean zero."""
    n = u.shape[-1]
    k = 2 * math.pi * torch.arange(n // 2 + 1, dtype=torch.float64)
    integral = torch.fft.irfft(torch.fft.rfft(u) / (1j * k.clamp_min(1)), n=n)
    phi = torch.fft.rfft((-integral / (2 * viscosity)).exp()) * torch.exp(-viscosity * k**2 * time)
    return -2 * viscosity * torch.fft.irfft(1j * k * phi, n=n) / torch.fft.irfft(phi, n=n)


def test_solver_agrees_with_the_exact_solution():
    u = random_fields(4, 256, seed=0)
    u = 0.5 * (u - u.mean(-1, keepdim=True))
    found = solve_burgers(u, viscosity=0.02, end=0.4, step=1e-3)
    assert relative_error(found, cole_hopf(u, viscosity=0.02, time=0.4)) < 1e-6


def test_solver_has_order_four_in_time():
    u = random_fields(4, 64, seed=0)
    last = {step: solve_burgers(u, viscosity=0.05, end=0.5, step=step) for step in (0.02, 0.01, 0.0005)}
    coarse, fine = (float(relative_error(last[step], last[0.0005])) for step in (0.02, 0.01))
    assert 3.5 < math.log2(coarse / fine) < 5


def test_solver_keeps_the_mean_and_loses_energy():
    u = random_fields(8, 256, seed=1)
    energy = [u.square().mean(-1)]
    for _ in range(4):
        later = solve_burgers(u, viscosity=0.01, end=0.1, step=1e-3)
        torch.testing.assert_close(later.mean(-1), u.mean(-1), rtol=0, atol=1e-13)
        energy.append(later.square().mean(-1))
        u = later
    assert all((after < before).all() for before, after in pairwise(energy))


def test_a_step_that_does_not_divide_the_time_still_ends_on_it():
    u = random_fields(2, 64, seed=2)
    options = {"viscosity": 0.05, "end": 0.1}
    assert relative_error(solve_burgers(u, **options, step=0.003), solve_burgers(u, **options, step=0.001)) < 1e-5


def test_random_fields_have_the_covariance_that_they_say():
    u = random_fields(20_000, 32, seed=3)
    power = torch.fft.rfft(u, norm="forward").abs().square().mean(0)
    k = 2 * math.pi * torch.arange(17, dtype=torch.float64)
    expected = (k**2 + 25) ** -2.0
    torch.testing.assert_close(power[:8] / power[0], expected[:8] / expected[0], rtol=0.05, atol=0)
    assert u.var() == pytest.approx(1, rel=0.02)


def distinct(report):
    """Factors of which no two blocks share one, not in order of depth."""
    values = [0.7, 1.4, 1.1]
    return {layer.name: v for b, v in zip(report.blocks, values, strict=True) for layer in b.layers} | {"lm_head": 1.0}


def by_block(factors, report):
    found = [{factors[layer.name] for layer in block.layers} for block in report.blocks]
    assert all(len(values) == 1 for values in found)
    return [values.pop() for values in found]


def test_placebos_hand_the_same_factors_to_other_blocks():
    report = analyze(tiny("llama", hidden_size=64, intermediate_size=96, head_dim=16))
    given = distinct(report)
    found = {kind: by_block(placebo_factors(kind, given, report), report) for kind in PLACEBOS}
    assert found["sorted"] == [0.7, 1.1, 1.4]
    assert found["reversed"] == [1.1, 1.4, 0.7]
    assert sorted(found["shuffled"]) == [0.7, 1.1, 1.4]
    orders = {tuple(by_block(placebo_factors("shuffled", given, report, seed=s), report)) for s in range(20)}
    assert len(orders) > 3
    assert found["shuffled"] == by_block(placebo_factors("shuffled", given, report), report)
    low, middle, high = found["decay"]
    assert low / middle == pytest.approx(DECAY)
    assert middle / high == pytest.approx(DECAY)
    assert low + middle + high == pytest.approx(3)
    assert placebo_factors("sorted", given, report)["lm_head"] == 1


def test_placebos_of_layers_permute_layers():
    report = analyze(tiny("llama", hidden_size=64, intermediate_size=96, head_dim=16))
    names = [layer.name for block in report.blocks for layer in block.layers]
    given = {name: 1 + (i * 7 % len(names)) / 100 for i, name in enumerate(names)}
    found = placebo_factors("sorted", given, report, unit="layer")
    assert [found[name] for name in names] == sorted(given.values())
    assert list(placebo_factors("reversed", given, report, unit="layer").values()) == list(given.values())[::-1]


def test_an_unknown_placebo_is_refused():
    report = analyze(tiny("llama", hidden_size=64, intermediate_size=96, head_dim=16))
    with pytest.raises(ValueError, match="kind must be one of shuffled, sorted, reversed, decay, got 'other'"):
        placebo_factors("other", distinct(report), report)


def block_order(factors):
    """Factors by depth of the Fourier layers."""
    return [factors[f"layers.{i}.spectral"] for i in range(4)]


def test_burgers_with_placebos(capsys):
    arms = ["none", "farms", "reversed", "frozen"]
    arguments = ["--samples", "64", "16", "16", "--steps", "6", "--no-shrink", "--arms", *arms]
    results = {arm: found[0] for arm, found in train_burgers.main(arguments).items()}
    assert all(0 < result.test < 1 for result in results.values())
    assert results["none"].range == (1, 1)
    # Until the first measurement all arms are the same, so its factors can be compared.
    first = {arm: block_order(results[arm].factors[0]) for arm in arms[1:]}
    assert min(first["farms"]) == pytest.approx(0.5)
    assert max(first["farms"]) == pytest.approx(1.5)
    assert first["reversed"] == first["farms"][::-1]
    assert first["frozen"] == first["farms"]
    assert len(results["frozen"].factors) == 1
    assert len(results["farms"].factors) == 5
    # They act.
    assert len({result.validation for result in results.values()}) == 4
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1:] == [f"| {arm}" for arm in arms]


def test_several_seeds(capsys):
    arguments = ["--samples", "32", "8", "8", "--steps", "2", "--arms", "none", "--seeds", "0", "1"]
    first, second = train_burgers.main(arguments)["none"]
    assert first.validation != second.validation
    mean = (first.validation + second.validation) / 2
    assert f"none: validation {mean:.4g} ± " in capsys.readouterr().out


@pytest.mark.slow
def test_the_operator_learns_with_and_without():
    results = train_burgers.main(["--samples", "256", "64", "64", "--epochs", "15", "--no-shrink"])
    assert all(found[0].test < 0.15 for found in results.values())


def write_images(path, count, seed):
    """Noisy images, red or blue."""
    source = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        pixels = source.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., 2 * (index % 2)] += 100
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{index}.png"}, "label": index % 2})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_images(tmp_path):
    write_images(tmp_path / "train.parquet", 200, seed=0)
    write_images(tmp_path / "test.parquet", 20, seed=1)
    arguments = [str(tmp_path), "--steps", "8", "--lr", "0.02", "--no-shrink"]
    results = train_images.main(arguments)
    assert all(result.test >= 0.9 for found in results.values() for result in found)
    assert 0 < results["farms"][0].share < 1
    assert results["farms"][0].range == pytest.approx((0.5, 1.5))


def test_training_images_are_flipped_and_shifted_and_the_others_are_not():
    pixels = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8)
    statistics = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    plain = train_images.Images(pixels, torch.zeros(1), statistics)
    torch.testing.assert_close(plain[0]["pixel_values"], pixels[0].float())
    train = train_images.Images(pixels, torch.zeros(1), statistics, augment=True)
    seen = [train[0]["pixel_values"] for _ in range(40)]
    assert all(image.shape == (3, 32, 32) for image in seen)
    padded = torch.nn.functional.pad(pixels[0].float(), [4] * 4)
    places = {
        (top, left, flip)
        for image in seen
        for flip in (False, True)
        for top in range(9)
        for left in range(9)
        if torch.equal(image.flip(-1) if flip else image, padded[:, top : top + 32, left : left + 32])
    }
    assert len(places) > 20
    assert {flip for _, _, flip in places} == {False, True}


def test_text(tmp_path, monkeypatch):
    monkeypatch.setattr(train_text.demo, "TEXT", tmp_path)
    speech = demo_text("test").read_text(encoding="utf-8")
    for name, start, length in (("train", 0, 30_000), ("select", 30_000, 4_000), ("test", 34_000, 4_000)):
        (tmp_path / f"{name}.txt").write_text(speech[start : start + length], encoding="utf-8")
    results = train_text.main(["--text", str(tmp_path), "--steps", "3", "--no-shrink"])
    perplexities = [found[0].test for found in results.values()]
    # Random weights guess among the 2,048 tokens of the vocabulary.
    assert all(1 < perplexity < 1900 for perplexity in perplexities)
    assert len(results["farms"][0].factors[0]) == 6 * 7
    assert results["farms"][0].range == pytest.approx((0.5, 1.5))
