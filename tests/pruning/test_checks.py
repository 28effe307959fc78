"""What a method cannot do with a model is said before anything is measured."""

import shutil

import pytest
import torch
from families import family_model
from hf_farms_cli.app import app
from typer.testing import CliRunner

from hf_farms.blocks import ModelBlockSource
from hf_farms.config import CalibrationConfig, PruneConfig
from hf_farms.data.generation import require_writer
from hf_farms.demo import demo_model
from hf_farms.errors import DataError, ModelError
from hf_farms.metrics.nll import require_causal
from hf_farms.pruning import pruner
from hf_farms.pruning.checks import WITHOUT_ACTIVATIONS, check_method
from hf_farms.pruning.pruner import prune


def test_two_stacks_cannot_be_run_one_after_another(monkeypatch):
    monkeypatch.setattr(pruner, "analyze", lambda *_, **__: pytest.fail("measured first"))
    with pytest.raises(ModelError, match="blocks must form a single stack") as refused:
        prune(family_model("t5"), calibration=[torch.arange(8)])
    assert refused.value.hint == WITHOUT_ACTIVATIONS


def test_a_model_that_takes_no_tokens_is_refused(monkeypatch):
    monkeypatch.setattr(pruner, "analyze", lambda *_, **__: pytest.fail("measured first"))
    message = r"the model must run on its inputs, got \w+Error \("
    with pytest.raises(ModelError, match=message) as refused:
        prune(family_model("vit"), calibration=[torch.arange(8)])
    assert refused.value.hint == WITHOUT_ACTIVATIONS


def test_what_can_be_done_leaves_the_model_as_it_was():
    model = family_model("llama").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_method(ModelBlockSource(model), PruneConfig(), torch.arange(8)[None])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_encoder_with_a_decoder_predicts_no_next_token():
    model = family_model("t5")
    with pytest.raises(ModelError, match="perplexity must be measured on a causal language model, got T5"):
        require_causal(model)
    with pytest.raises(DataError, match="self-calibration must have a model that generates text, got T5"):
        require_writer(model, CalibrationConfig(source="self"), length=64)


def test_a_context_of_one_token_writes_nothing():
    for config, name in ((CalibrationConfig(source="self"), "self-calibration"), (CalibrationConfig(), "num_cont")):
        with pytest.raises(DataError, match=rf"{name}.* must have a model with a context of at least 2 tokens, got 1"):
            require_writer(family_model("llama"), config, length=1)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("more", [(), ("--evaluation", "none"), ("--evaluation", "none", "--calibration", "self")])
def test_the_command_refuses_before_it_measures(more, tmp_path):
    family_model("t5").save_pretrained(tmp_path / "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model() / name, tmp_path / "t5")
    done = CliRunner().invoke(app, ["prune", str(tmp_path / "t5"), "-o", str(tmp_path / "out"), *more])
    assert done.exit_code == 1
    assert "Error:" in done.stderr
    assert "Measuring" not in done.stderr
    assert not (tmp_path / "out.partial").exists()
