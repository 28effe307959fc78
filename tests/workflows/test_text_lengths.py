"""A local text that is too short in tokens is refused before weights are loaded, or fetched from the Hub."""

import shutil

import pytest
import torch
from models import tiny_bert

from hf_farms import (
    CalibrationConfig,
    EvaluationConfig,
    PruneConfig,
    SelectionConfig,
    evaluate_checkpoint,
    prune_checkpoint,
)
from hf_farms.demo import demo_model
from hf_farms.errors import DataError, ModelError
from hf_farms.loading.opening import load_model
from hf_farms.output.recipe import Recipe
from hf_farms.workflows.text_lengths import checked_before_weights, texts_of

NO_TEXT = EvaluationConfig(source=None)


@pytest.fixture
def model(tmp_path):
    """A model whose weights cannot be read."""
    folder = shutil.copytree(demo_model(), tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"damaged")
    return folder


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("the people of the states " * 20)
    return str(path)


def test_the_weights_are_read_where_all_texts_are_long_enough(model, tmp_path):
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        prune_checkpoint(model, tmp_path / "out", config=PruneConfig(), evaluation=EvaluationConfig())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"calibration": CalibrationConfig}, "calibration text must have at least 256 tokens, got"),
        ({"selection": SelectionConfig}, "selection text must have at least 1024 tokens"),
        ({"evaluation": EvaluationConfig}, "evaluation text must have at least 256 tokens, got"),
    ],
)
def test_a_short_text_of_a_prune_is_refused_first(model, short, tmp_path, texts, message):
    options = {"evaluation": NO_TEXT} | {name: kind(source=short) for name, kind in texts.items()}
    with pytest.raises(DataError, match=message):
        prune_checkpoint(model, tmp_path / "out", config=PruneConfig(recover="submodule"), **options)
    assert not (tmp_path / "out").exists()


def test_a_short_text_of_an_evaluation_is_refused_first(model, short):
    with pytest.raises(DataError, match="evaluation text must have at least 256 tokens, got"):
        evaluate_checkpoint(model, text=EvaluationConfig(source=short))


def by_prune(model, text, folder):
    prune_checkpoint(model, folder, evaluation=text)


def by_evaluation(model, text, folder):
    evaluate_checkpoint(model, text=text)


@pytest.mark.parametrize("measure", [by_prune, by_evaluation])
def test_a_model_that_fits_no_evaluation_text_is_refused_before_the_text(measure, short, tmp_path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model() / name, tmp_path / "bert")
    with pytest.raises(ModelError, match="perplexity must be measured on a causal language model"):
        measure(tmp_path / "bert", EvaluationConfig(source=short), tmp_path / "out")


def test_a_text_that_is_not_read_is_not_checked(model, short):
    recipe = Recipe(
        model=str(model),
        revision=None,
        dtype="auto",
        prune=PruneConfig(method="magnitude"),
        calibration=CalibrationConfig(source=short),
        evaluation=NO_TEXT,
    )
    assert texts_of(recipe) == []
    assert checked_before_weights([]) is None


def test_the_check_agrees_with_the_reader_on_every_length(tmp_path):
    """Long words have the fewest tokens per character, and the built-in text is never read twice."""
    loaded = load_model("demo")
    for words in range(1, 40):
        path = tmp_path / f"{words}.txt"
        path.write_text("constitution " * words)
        count = len(loaded.tokenizer(path.read_text())["input_ids"])
        check = checked_before_weights([CalibrationConfig(source=str(path), sequence_length=32)])
        refused = False
        try:
            if check is not None:
                check(loaded.model, loaded.tokenizer)
        except DataError:
            refused = True
        assert refused == (count < 32)
    assert checked_before_weights([CalibrationConfig(), SelectionConfig(), EvaluationConfig()]) is None


def test_the_check_gets_a_model_without_weights():
    seen = []
    load_model("demo", before_weights=lambda model, tokenizer: seen.append((model, tokenizer)))
    ((model, tokenizer),) = seen
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
    assert tokenizer("the people")["input_ids"]
