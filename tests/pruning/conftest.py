import pytest
import torch


@pytest.fixture
def many():
    """More tokens than any tiny layer has inputs."""
    return [torch.randint(0, 100, (8, 40), generator=torch.Generator().manual_seed(2))]
