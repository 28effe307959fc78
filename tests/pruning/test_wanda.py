import numpy as np
import pytest
import torch

from hf_farms.pruning.magnitude import magnitude_scores
from hf_farms.pruning.patterns import lowest_of_groups, lowest_per_row
from hf_farms.pruning.wanda import InputNorm, wanda_scores


@pytest.mark.parametrize("percent", [50, 70])
def test_masks_of_the_released_code(golden, percent):
    data = {name: torch.from_numpy(value) for name, value in np.load(golden / "wanda.npz").items()}
    norm = InputNorm(256, torch.device("cpu"))
    for part in data["activations"].split(100):
        norm.add(part)
    scores = wanda_scores(data["weight"], norm.norm())
    assert torch.equal(lowest_per_row(scores, 64 * int(256 * percent / 100)), data[f"mask_{percent}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_taken_in_float32(dtype):
    inputs = torch.full((3, 50, 4), 300.0, dtype=dtype)  # 300 squared overflows float16
    norm = InputNorm(4, torch.device("cpu"))
    norm.add(inputs)
    assert norm.num_tokens == 150
    assert torch.allclose(norm.norm(), torch.full((4,), 300.0))


def test_magnitude_is_the_absolute_value_in_float32():
    scores = magnitude_scores(torch.tensor([[-2.0, 1.0]], dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[2.0, 1.0]]


def test_the_2_of_4_mask_of_the_released_code(golden):
    data = {name: torch.from_numpy(value) for name, value in np.load(golden / "wanda.npz").items()}
    expected = torch.from_numpy(np.load(golden / "sparsegpt.npz")["wanda_mask_2of4"])
    norm = InputNorm(256, torch.device("cpu"))
    norm.add(data["activations"])
    assert torch.equal(lowest_of_groups(wanda_scores(data["weight"], norm.norm()), 2, 4), expected)
