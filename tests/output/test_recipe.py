import os
import socket
from dataclasses import replace
from itertools import pairwise

import pytest

from hf_farms.config import CalibrationConfig, EvaluationConfig, FarmsConfig, PruneConfig
from hf_farms.errors import DataError
from hf_farms.output.recipe import Recipe

RECIPE = Recipe(
    model="demo",
    revision=None,
    dtype="auto",
    prune=PruneConfig(),
    calibration=CalibrationConfig(),
    evaluation=EvaluationConfig(),
)
FIRST_RELEASE = """\
# hf-farms prune recipe.yaml
model: demo
revision: null
dtype: auto
prune:
  sparsity: 0.5
  method: wanda
  pattern: unstructured
  allocation: farms
  spread: 0.1
  shrink: true
  max_sparsity: 0.999
  farms:
    window_rows: auto
    aspect_ratio: 1.0
    windows_per_dim: auto
    fit: mid
    tail_divisor: 2.0
    released_peak_bound: false
    block_score: mean
calibration:
  source: speeches
  column: text
  subset: null
  split: train
  num_sequences: 32
  sequence_length: 512
  seed: 0
evaluation:
  source: speeches
  column: text
  subset: null
  split: test
  context_length: 512
  max_windows: 40
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "recipe.yaml"


def reason(path):
    """Why a recipe is refused: one sentence, which begins with its name."""
    with pytest.raises(DataError, match=r"^recipe must be .*, got '.*recipe\.yaml' \(.+\)\.$") as raised:
        Recipe.load(path)
    return str(raised.value).partition("recipe.yaml' (")[2].removesuffix(").")


def test_what_is_saved_is_loaded(path):
    tuned = Recipe(
        model="me/1e5",
        revision="2024-01-01",
        dtype="float32",
        prune=PruneConfig(
            pattern="2:4", allocation="uniform", spread=1e-7, spectra=FarmsConfig(window_rows=16, fit="peak")
        ),
        calibration=CalibrationConfig(source="./text.txt", split="yes", subset="007", seed=2**62),
        evaluation=EvaluationConfig(source=None, max_windows=None, column="a: b # c"),
    )
    for recipe in (RECIPE, tuned, replace(RECIPE, revision="12345e6"), replace(RECIPE, model="\u00fc/\u4e2d 'x'")):
        recipe.save(path)
        assert Recipe.load(path) == recipe


def test_continuations_and_passes_of_a_recovery_are_open_until_the_model_is_known(path):
    recovers = PruneConfig(recover="submodule")
    recipe = replace(RECIPE, prune=recovers, calibration=CalibrationConfig())
    assert not recipe.is_decided
    assert (recipe.calibration.num_continuations, recipe.prune.recover_passes) == (None, None)
    recipe.save(path)
    assert Recipe.load(path) == recipe
    written, read = recipe.decided(writes=True), recipe.decided(writes=False)
    assert (written.calibration.num_continuations, written.prune.recover_passes) == (96, 2)
    assert (read.calibration.num_continuations, read.prune.recover_passes) == (0, 6)
    assert written.decided(writes=False) == written
    described = [line for line in recipe.describe() if "(" in line]
    assert described == [
        "prune.recover_passes: 2 (where the model is streamed, or cannot generate text: 6)",
        "calibration.num_continuations: 96 (where the model is streamed, or cannot generate text: 0)",
    ]
    chosen = replace(recipe, prune=replace(recovers, recover_passes=5))
    assert [chosen.decided(writes=writes).prune.recover_passes for writes in (True, False)] == [5, 5]


@pytest.mark.parametrize(
    ("recover", "calibration", "passes"),
    [
        ("submodule", CalibrationConfig(num_sequences=128), 2),
        ("submodule", CalibrationConfig(num_continuations=0), 6),
        ("submodule", CalibrationConfig(num_continuations=32), 3),
        ("submodule", CalibrationConfig(source="self"), 6),
        ("distill", CalibrationConfig(num_sequences=128), 2),
        ("none", CalibrationConfig(), 3),
    ],
)
def test_recipes_without_a_default_that_depends_on_the_model(recover, calibration, passes):
    recipe = replace(RECIPE, prune=PruneConfig(recover=recover), calibration=calibration)
    assert recipe.is_decided
    assert recipe.prune.recover_passes == passes
    assert recipe.calibration.num_continuations == (calibration.num_continuations or 0)
    assert recipe.decided(writes=True) == recipe


def test_a_recipe_of_the_first_release_is_read(path):
    path.write_text(FIRST_RELEASE)
    with pytest.warns(DeprecationWarning, match="PruneConfig.farms is named spectra now"):
        # That release had no option `ends`.
        assert Recipe.load(path) == replace(RECIPE, prune=replace(RECIPE.prune, ends="measured"))


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("model: demo", "modell: demo", "line 2: 'modell' is no entry, did you mean 'model'?"),
        ("model: demo\n", "", "model is missing"),
        ("model: demo", "model: null", "line 2: model must be text, got nothing"),
        ("model: demo", "model:", "line 2: model must be text, got nothing"),
        ("model: demo", "model: [demo]", "line 2: model must be text, got ['demo']"),
        ("model: demo", "model: {name: demo}", "line 2: model must be text, got {'name': 'demo'}"),
        ("model: demo", "model: 7", "line 2: model must be text, got 7"),
        ("model: demo", "model: yes", "line 2: model must be text, got true"),
        ("model: demo", "model: ''", "line 2: model must be a hub id, a folder or `demo`, got ''"),
        ("model: demo", "model: [demo", "line 3: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        ("model: demo", "model: demo\nmodel: other/model", "line 3: key 'model' occurs twice, first in line 2"),
        (
            "  method: wanda",
            "  method: wanda\n  method: sparsegpt",
            "line 8: key 'method' occurs twice, first in line 7",
        ),
        (
            "model: demo",
            "model: demo\n\tdtype: auto",
            "line 3: while scanning for the next token, found character '\\t'",
        ),
        ("model: demo", "model: demo\n---\nmodel: b", "line 3: expected a single document in the stream"),
        ("model: demo", "model: *name", "line 2: alias *name must be written out"),
        ("model: demo", "<<: {model: demo}", "line 2: merge key << must be written out"),
        ("model: demo", "? [a, b]\n: c", "line 2: a key must be text"),
        (
            "model: demo",
            "model: !!python/object/apply:os.system ['true']",
            "line 2: tag 'tag:yaml.org,2002:python/obje",
        ),
        ("model: demo", "model: !mine demo", "line 2: tag '!mine' is not allowed in settings"),
        ("model: demo", "model: !!binary aGk=", "line 2: tag 'tag:yaml.org,2002:binary' is not allowed in settings"),
        ("model: demo", "model: !!int demo", "line 2: 'demo' is no int"),
        ("model: demo", "model: de\0mo", "line 2: character '\\x00' is not allowed"),
        ("dtype: auto", "dtype: int3", "line 4: dtype must be auto, float32, bfloat16 or float16, got 'int3'"),
        ("sparsity: 0.5", "sparsity: half", "line 6: prune.sparsity must be a number, got 'half'"),
        (
            "sparsity: 0.5",
            "sparsity: '0.5'",
            "line 6: prune.sparsity must be a number, got '0.5', which is text: write 0.5",
        ),
        (
            "sparsity: 0.5",
            "sparsity: 5e-1",
            "line 6: prune.sparsity must be a number, got '5e-1', which is text: write 0.5",
        ),
        ("sparsity: 0.5", "sparsity: true", "line 6: prune.sparsity must be a number, got true"),
        ("sparsity: 0.5", "sparsity: .nan", "line 6: prune.sparsity must be a number, got nan"),
        ("sparsity: 0.5", "sparsity: -.inf", "line 6: prune.sparsity must be a number, got -inf"),
        ("sparsity: 0.5", "sparsity: 2", "line 6: sparsity must be at least 0 and below 1, got 2.0. It is a fraction"),
        ("sparsity: 0.5", "sparsity: -0.5", "line 6: sparsity must be at least 0 and below 1, got -0.5"),
        (
            "method: wanda",
            "method: obd",
            "line 7: prune.method must be one of magnitude, wanda, ria, sparsegpt, got 'obd'",
        ),
        ("shrink: true", "shrink: 1", "line 11: prune.shrink must be true or false, got 1"),
        ("fit: mid", "fit: 3", "prune.spectra.fit must be one of mid, peak, goodness_of_fit, got 3"),
        ("  seed: 0", "  sead: 0", "'sead' is no entry of calibration, did you mean 'seed'?"),
        ("  seed: 0", "  seed: 0.5", "calibration.seed must be a whole number, got 0.5"),
        ("  seed: 0", "  seed: " + "9" * 30, "calibration.seed must be a whole number, got 99999"),
        ("  seed: 0", "  seed: " + "9" * 5000, "' is no int"),
        (
            "  seed: 0",
            "  seed: 0x" + "f" * 9000,
            "calibration.seed must be a whole number, got a number of thousands of",
        ),
        ("  seed: 0", "  seed: 2024-01-01", "calibration.seed must be a whole number, got '2024-01-01'"),
        ("max_windows: 40", "max_windows: forty", "evaluation.max_windows must be a whole number or null, got 'forty'"),
        (
            "window_rows: auto",
            "window_rows: none",
            "prune.spectra.window_rows must be a whole number or 'auto' or null",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_in_one_sentence(old, new, wrong, path):
    RECIPE.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert wrong in reason(path)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "the document must be a mapping of settings, got nothing"),
        (b"# nothing\n", "the document must be a mapping of settings, got nothing"),
        (b"hello", "line 1: the document must be a mapping of settings, got 'hello'"),
        (b"- a\n- b\n", "line 1: the document must be a mapping of settings, got ['a', 'b']"),
        (b"42", "line 1: the document must be a mapping of settings, got 42"),
        (b"prune: 3\nmodel: demo\n", "revision is missing"),
        (
            b"prune: 3\nmodel: demo\nrevision:\ndtype: auto\ncalibration: {}\nevaluation: []",
            "line 1: prune must be a map",
        ),
        (b"prune: {}\nmodel: demo\nrevision:\ndtype: auto\ncalibration: {}\nevaluation: []", "line 6: evaluation must"),
        (b"model: demo\nrevision: \xff\n", "line 2: byte 0xff is not utf-8"),
        ("model: demo".encode("utf-16"), "line 1: byte 0xff is not utf-8"),
        (b"[" * 60_000, "line 1: it is nested more than 20 deep"),
        (b"- " * 30_000, "line 1: it is nested more than 20 deep"),
        (b"a: &a [*a]", "line 1: alias *a must be written out"),
        (b"a: " + b"x" * 70_000, "it has more than 65,536 bytes"),
    ],
)
def test_what_is_no_recipe_at_all(content, wrong, path):
    path.write_bytes(content)
    assert wrong in reason(path)


def test_a_bomb_of_aliases_is_refused_before_it_grows(path):
    rows = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    rows += [f"{c}: &{c} [" + ",".join([f"*{p}"] * 9) + "]" for p, c in pairwise("abcdefghi")]
    path.write_text("\n".join(rows) + "\nmodel: *i\n")
    assert reason(path) == "line 2: alias *a must be written out"


@pytest.mark.parametrize("kind", ["folder", "named pipe", "socket", "device"])
def test_only_a_file_is_opened(kind, path):
    """A pipe would wait for its writer for ever, a device may never end."""
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    assert reason(path) == f"it is a {kind} and must be a file"


def test_a_byte_order_mark_is_no_mistake(path):
    RECIPE.save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert Recipe.load(path) == RECIPE
