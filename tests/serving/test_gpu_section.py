"""The section `serving` of gpu.py with a real vLLM for the CPU that keeps the weights of the checkpoint."""

import argparse
import os
from pathlib import Path

import gpu
import gpu_serving
import pytest
import torch

PYTHON = Path(__file__).parents[2] / ".venv-serving/bin/python"


@pytest.mark.serving
def test_the_section_runs(monkeypatch):
    monkeypatch.setenv("HF_FARMS_SERVING_PYTHON", os.environ.get("HF_FARMS_SERVING_PYTHON", str(PYTHON)))
    torch.manual_seed(0)
    rows = list(gpu_serving.serving(argparse.Namespace(**gpu.SMALL, device="cpu", small=True)))
    assert [row["weights"] for row in rows] == ["base", "a", "b", "base", "base", "a", "a and b"]
    assert [row["as_before"] for row in rows if row["as_before"] is not None] == [True]
    assert [row["switch_s"] is None for row in rows] == [True, False, False, False, True, True, True]
    for row in rows:
        # A wrong adapter would not pass for rounding.
        assert row["change"] > row["difference"] or row["weights"] == "base"
        assert all(row[f"tokens_per_s x{size}"] > 0 for size in gpu.SMALL["served"]["batches"])
