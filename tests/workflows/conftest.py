import pytest
from figures import one_pixel
from models import save_short_demo


@pytest.fixture(scope="session")
def short_demo(tmp_path_factory):
    """The first two blocks of the demo, in a folder."""
    return save_short_demo(tmp_path_factory.mktemp("short") / "demo", 2)


@pytest.fixture(scope="module", autouse=True)
def _no_figures():
    with one_pixel():
        yield
