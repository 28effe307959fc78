import pytest
from figures import one_pixel


@pytest.fixture(scope="module", autouse=True)
def _no_figures():
    with one_pixel():
        yield
