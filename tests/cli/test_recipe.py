import pytest
from hf_farms_cli.recipe import Recipe, shown_command

from hf_farms.config import CalibrationConfig, EvaluationConfig, PruneConfig
from hf_farms.errors import DataError

RECIPE = Recipe(
    model="demo",
    revision=None,
    dtype="auto",
    prune=PruneConfig(),
    calibration=CalibrationConfig(),
    evaluation=EvaluationConfig(),
)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "model: demo",
            "modell: demo",
            r"required field missing at recipe.model; extra fields found \(modell\) at recipe",
        ),
        ("sparsity: 0.5", "sparsity: half", "could not convert string to float: 'half' at recipe.prune.sparsity"),
        ("sparsity: 0.5", "sparsity: 2", "sparsity must be at least 0 and below 1, got 2.0.* at recipe.prune"),
        ("  seed: 0", "  sead: 0", r"extra fields found \(sead\) at recipe.calibration"),
        ("model: demo", "model: [demo", "while parsing a flow sequence"),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(old, new, reason, tmp_path):
    path = tmp_path / "recipe.yaml"
    RECIPE.save(path)
    assert Recipe.load(path) == RECIPE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(
        DataError, match=rf"^recipe must be one that hf-farms wrote, got '.*recipe.yaml' \(.*{reason}"
    ) as raised:
        Recipe.load(path)
    assert "\n" not in str(raised.value)
    assert "sub-exception" not in str(raised.value)


def test_what_is_no_mapping_is_no_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("- a\n- b\n")
    with pytest.raises(DataError, match=r"recipe must be one that hf-farms wrote, got '.*' \(.+\)\."):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["prune", "demo", "--push"], "hf-farms prune demo --push"),
        (["prune", "--token", "hf_secret", "demo"], "hf-farms prune demo"),
        (["prune", "demo", "--token=hf_secret", "-o", "my model"], "hf-farms prune demo -o 'my model'"),
        (["prune", "demo", "--token"], "hf-farms prune demo"),
    ],
)
def test_a_command_is_shown_without_its_token(arguments, shown):
    assert shown_command(["/usr/bin/hf-farms", *arguments]) == shown
