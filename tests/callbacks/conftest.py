import pytest


@pytest.fixture
def drawn():
    """For tests of figures; all others do without."""


@pytest.fixture(autouse=True)
def _figures(request):
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("undrawn")


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """wandb without its server: all of it below the folder of the test, its process ends with the test."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield wandb
    # Else the next test gets the settings of this one.
    wandb.teardown()
