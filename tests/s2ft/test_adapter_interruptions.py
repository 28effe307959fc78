"""Ctrl-C between two writes of a merge, unmerge or switch: the model is as before the call."""

import pytest
import torch
from adapters import WEIGHT, adapters_of, same, state
from models import tiny

from hf_farms import S2FTAdapter
from hf_farms.s2ft.adapters.applying import is_merged
from hf_farms.s2ft.adapters.channels import Channels


@pytest.fixture
def interrupted(monkeypatch):
    """Run a call, with Ctrl-C in the place of its n-th write to a weight."""
    write = Channels.write

    def run(call, number):
        calls = []

        def stop(self, matrix):
            calls.append(matrix)
            if len(calls) == number:
                raise KeyboardInterrupt("as Ctrl-C does")
            write(self, matrix)

        with monkeypatch.context() as patched:
            patched.setattr(Channels, "write", stop)
            with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
                call()

    return run


def across(model):
    """An adapter of outputs of a weight of which the others have inputs."""
    tuned = tiny("llama")
    with torch.no_grad():
        tuned.get_parameter(WEIGHT)[::5] += 1
    return S2FTAdapter.from_training(tuned, model)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_model_is_as_before(interrupted, number, known):
    model = tiny("llama")
    base, ((one, two), (merged, _)), rows = state(model), adapters_of(model, 2), across(model)
    if known:
        for each in (two, rows, one):
            with each.on(model):
                pass

    interrupted(lambda: one.merge(model), number)
    assert same(state(model), base)
    assert not is_merged(model)

    one.merge(model)
    for other in (two, rows):
        interrupted(lambda other=other: one.switch(model, other), number)
        assert same(state(model), merged)
    interrupted(lambda: one.unmerge(model), number)
    assert same(state(model), merged)
    assert is_merged(model)

    one.unmerge(model)
    assert same(state(model), base)
