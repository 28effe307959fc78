import pytest
from figures import one_pixel

from hf_farms.loading.opening import load_model


@pytest.fixture(scope="session")
def short_demo(tmp_path_factory):
    """The first two blocks of the demo, in a folder."""
    folder, loaded = tmp_path_factory.mktemp("short") / "demo", load_model("demo")
    loaded.model.model.layers = loaded.model.model.layers[:2]
    loaded.model.config.num_hidden_layers = 2
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _no_figures():
    with one_pixel():
        yield
