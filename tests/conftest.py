import gc
import os

# Before any import of a library that reads them: nothing here may reach the network by accident.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from figures import one_pixel
from models import tiny

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_finish():
    """What was imported stays; collections of garbage, such as that of every Trainer, need not walk through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def llama():
    return tiny("llama")


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture
def ids():
    """Two batches of token ids of different shapes."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 100, (2, 17), generator=generator), torch.randint(0, 100, (31,), generator=generator)]


@pytest.fixture
def undrawn():
    """See `one_pixel`."""
    with one_pixel():
        yield
