"""Nothing that is published names the home folder, the user or a token."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hf_farms_cards import render_card
from hf_farms_cli.shown_command import shown_command
from hub_client import HubClient
from local_hub import LocalHub
from models import tiny
from trainers import FAST, signal, trainer
from transformers import AutoTokenizer

from hf_farms import FarmsLRCallback, PruneConfig, S2FTCallback, S2FTConfig, prune
from hf_farms.config import CalibrationConfig, EvaluationConfig
from hf_farms.demo import DEMO_FOLDERS, demo_model, demo_text
from hf_farms.output.recipe import Recipe
from hf_farms.privacy.publishing import published, published_argument, published_path, published_text, same_place
from hf_farms.reports import REPORT_NAME, PruneReport

HOME, USER, TOKEN = "zanzibarhome", "quuxworth", "hf_good"
PRIVATE = (HOME, USER, TOKEN)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder of a user with an unlikely name, with a folder to work in."""
    home = tmp_path / HOME
    (home / "work").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name, value in {"HOME": home, "USER": USER, "LOGNAME": USER, "HF_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(home / "work")
    return home


@pytest.mark.parametrize("name", DEMO_FOLDERS)
def test_a_demo_model_keeps_its_name_beside_a_folder_of_that_name(home, name):
    (home / "work" / name).mkdir()
    assert published_path(name) == name


@pytest.mark.parametrize("name", DEMO_FOLDERS)
def test_the_folder_of_a_demo_model_has_its_name(home, name, monkeypatch):
    folder = demo_model(name)
    assert published_path(str(folder)) == name
    assert published_path(f"{folder}/") == name
    assert published_text(f"Model: {folder}.") == f"Model: {name}."
    assert same_place(str(folder), name)
    monkeypatch.chdir(folder.parent)
    assert published_path(f"./{folder.name}") == name
    assert published_path(str(folder.parent / "text")) == "./text"
    monkeypatch.chdir(home)
    (home / folder.name).mkdir()
    assert published_path(f"./{folder.name}") == f"./{folder.name}"


def test_a_recipe_of_a_demo_folder_names_the_demo_and_no_place(home):
    settings = {"revision": None, "dtype": "auto", "calibration": CalibrationConfig(), "evaluation": EvaluationConfig()}
    recipe = Recipe(model=str(demo_model()), prune=PruneConfig(), **settings)
    assert recipe.published().model == "demo"
    assert recipe.places() == {}
    recipe.save(home / "recipe.yaml")
    assert "outside the folder" not in (home / "recipe.yaml").read_text()
    assert recipe.differences(Recipe.load(home / "recipe.yaml")) == []


@pytest.mark.parametrize(
    ("here", "name", "shown"),
    [
        ("{home}/work", "{home}/work/m", "./m"),
        ("{home}/work", "{home}/work/sub/../m", "./m"),
        ("{home}/work", "~/work/sub/x.txt", "./sub/x.txt"),
        ("{home}/work", "{home}/other/m", "./m"),
        ("{home}/work", "../other/m", "./m"),
        ("{home}/work", "file://{home}/work/a%20b.txt", "./a b.txt"),
        ("{home}/work", "file:{home}/x.txt", "./x.txt"),
        ("{home}/work", ".", "."),
        ("{home}/work", "{home}", "./model"),
        ("{home}/work", "~", "./model"),
        ("{home}/work", "/", "./model"),
        ("{home}", "{home}/work/m", "./work/m"),
        ("{home}/../elsewhere", "{home}/work/m", "./m"),
        # Through the home folder, though it is below the working folder.
        ("{home}/..", "{home}/work/m", "./m"),
        ("{home}/..", "elsewhere", "./elsewhere"),
        ("/", "{home}/work/m", "./m"),
        ("/", "/home/somebody/data/x.txt", "./x.txt"),
        ("{home}/work", "/data/quuxworth/x.txt", "./x.txt"),
        ("{home}/..", "{home}/../elsewhere/of-Quuxworth/x.txt", "./x.txt"),
        ("{home}/work", "C:\\Users\\Quuxworth\\m", "./m"),
        ("{home}/work", "meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b"),
        ("{home}/work", "demo", "demo"),
        ("{home}/work", "speeches", "speeches"),
        ("{home}/work", "https://u:geheim@h/x", "https://h/x"),
        ("{home}/work", "./m", "./m"),
        ("{home}/work", "x" * 5000, "x" * 5000),
    ],
)
def test_how_a_name_is_published(home, monkeypatch, here, name, shown):
    monkeypatch.chdir(Path(here.format(home=home)).resolve())
    found = published_path(name.format(home=home))
    assert found == shown
    assert published_path(found) == found


def test_a_link_to_the_home_folder_is_the_home_folder(home, monkeypatch):
    (home.parent / "link").symlink_to(home)
    (home / "work" / "m").mkdir()
    monkeypatch.chdir(home.parent)
    assert published_path("link/work/m") == "./m"
    monkeypatch.setenv("HOME", str(home.parent / "link"))
    assert published_path(str(home / "work" / "m")) == "./m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'{home}/my model' has Meta's own layout", "'./my model' has Meta's own layout"),
        ("see {home}/x/y.txt, and ~/z.txt.", "see ./y.txt, and ./z.txt."),
        ("{home} ({home}/work/a.txt)", "./model (./a.txt)"),
        ('model: "{home}/work/m"', 'model: "./m"'),
        ("path={home}/x:{home}/y", "path=./x:~/y"),
        ("file://{home}/x.txt", "./x.txt"),
        ("/home/somebody/x", "./x"),
        (
            "/m/01g317 1/2 and/or https://huggingface.co/a/b /api/x",
            "/m/01g317 1/2 and/or https://huggingface.co/a/b /api/x",
        ),
    ],
)
def test_how_a_text_is_published(home, text, shown):
    assert published_text(text.format(home=home)) == shown
    assert published_text(shown) == shown


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--output={home}/out", "--output=./out"),
        ("-o{home}/out", "-o./out"),
        ("--calibration=~/x.txt", "--calibration=./x.txt"),
        ("--commit-message=of {home}/x", "--commit-message=of ./x"),
        ("{home}/work/m", "./m"),
        ("-o", "-o"),
        ("2:4", "2:4"),
        ("a/b", "a/b"),
    ],
)
def test_how_an_argument_is_published(home, argument, shown):
    assert published_argument(argument.format(home=home)) == shown
    command = shown_command([f"{home}/bin/hf-farms", "prune", argument.format(home=home), "--token", TOKEN])
    assert not any(word in command for word in PRIVATE)


@pytest.mark.parametrize("argument", ["{place}", "--output={place}", "-o{place}"])
@pytest.mark.parametrize("place", ["zanzibarhome/work/m", "zanzibarhome/work/not/there/yet", "zanzibarhome/m"])
def test_a_relative_path_through_a_home_folder(home, monkeypatch, argument, place):
    """From a folder above it, nothing at the beginning of the argument says that it is a path."""
    (home / "work" / "not" / "there").mkdir(parents=True)
    monkeypatch.chdir(home.parent)
    shown = f"./{place.rpartition('/')[2]}"
    assert published_argument(argument.format(place=place)) == argument.format(place=shown)
    assert published_argument(f"{USER}/model") == f"{USER}/model"  # on the Hub


def test_structures_and_what_only_looks_like_a_path(home):
    found = {"id2label": {"0": "/m/01g317"}, "_name_or_path": f"{home}/m", "a": [f"{home}/x", 1, None, 0.5, True]}
    assert published(found) == {
        "id2label": {"0": "/m/01g317"},
        "_name_or_path": "./m",
        "a": ["./x", 1, None, 0.5, True],
    }
    (home / "work" / "text").touch()
    assert published({"column": "text", "source": "text"}) == {"column": "text", "source": "./text"}


def test_the_same_place_by_two_names(home):
    (home / "work" / "m").mkdir()
    assert same_place("m", f"{home}/work/m")
    assert same_place(f"{home}/x/m", "./m")  # which was published
    assert not same_place(f"{home}/x/m", f"{home}/y/m")
    assert not same_place("a/m", "b/m")
    assert same_place("a/m", "a/m")


def test_reports_and_cards_of_the_python_functions(home, llama):
    result = prune(llama, PruneConfig(method="magnitude", allocation="uniform"))
    from dataclasses import replace

    report = replace(
        result.report,
        model=f"{home}/models/m",
        command=f"hf-farms prune {home}/models/m",
        notes=(f"'{home}/models/m' was converted.", "token hf_good"),
    )
    text = report.to_json() + render_card(report)
    assert not any(word in text for word in PRIVATE)
    assert PruneReport.from_json(report.to_json()).model == "./m"


def test_a_recipe_says_what_lies_elsewhere_and_keeps_what_is_below(home):
    for name in ("in", "out"):
        (home / "work" / name).mkdir()
    recipe = Recipe(
        model=str(home / "models" / "m"),
        revision=None,
        dtype="auto",
        prune=PruneConfig(),
        calibration=CalibrationConfig(source=str(home / "work" / "in" / "x.txt")),
        evaluation=EvaluationConfig(source=None),
    )
    recipe.save(home / "recipe.yaml")
    text = (home / "recipe.yaml").read_text()
    assert "# ./m: outside the folder that this ran in." in text
    assert "model: ./m\n" in text
    assert "source: ./in/x.txt\n" in text
    assert recipe.differences(Recipe.load(home / "recipe.yaml")) == []
    assert not any(word in text for word in PRIVATE)


def test_a_name_cannot_add_lines_to_a_recipe(home):
    recipe = Recipe(
        model=str(home / "models" / "m\nmodel: evil\r#"),
        revision=None,
        dtype="auto",
        prune=PruneConfig(),
        calibration=CalibrationConfig(),
        evaluation=EvaluationConfig(source=None),
    )
    recipe.save(home / "recipe.yaml")
    assert Recipe.load(home / "recipe.yaml").model == "./m\nmodel: evil\r#"
    assert (home / "recipe.yaml").read_text().splitlines()[1].startswith("# ./m?model: evil?#: outside")


def leaks(hub):
    """Files in any repository with one of the words, in whatever form."""
    files = {f"{repo}/{name}": data for repo, there in hub.repos.items() for name, data in there.files.items()}
    files |= {name: name.encode() for name in files} | {f"blob {sha}": data for sha, data in hub.blobs.items()}
    return {name: word for name, data in files.items() for word in PRIVATE if word.encode() in data}


@pytest.fixture
def dense(home):
    """A model in the home folder, outside the working folder, with texts beside it."""
    folder = home / "models" / "dense"
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(folder)
    tiny("llama", vocab_size=2048).save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\nIn {folder}.\n")
    (folder / "LICENSE").write_text("terms")
    for name in ("calibration", "test"):
        shutil.copy(demo_text(name), home / f"{name}.txt")
    return folder


SMALL = (
    "--calibration-samples",
    "2",
    "--calibration-length",
    "16",
    "--context-length",
    "16",
    "--evaluation-windows",
    "2",
)


@pytest.mark.parametrize("place", ["work", "../elsewhere"])
def test_a_prune_an_evaluation_and_a_card(home, dense, place):
    here = (home / place).resolve()
    texts = ("--calibration", f"{home}/calibration.txt", "--evaluation", str(home / "test.txt"))
    command = ("prune", str(dense), *SMALL, *texts, f"--output={here}/out")
    with LocalHub() as hub, HubClient(hub, here, HOME=str(home), USER=USER, LOGNAME=USER) as client:
        done = client.cli(*command, "--push", "--repo-id", "pruned", "-q")
        assert done["status"] == 0, done
        assert leaks(hub) == {}
        recipe, report = (here / "out" / name for name in ("recipe.yaml", REPORT_NAME))
        assert "model: ./dense" in recipe.read_text()
        assert not any(word in recipe.read_text() + report.read_text() for word in PRIVATE)
        # It is known what is meant: nothing is pruned again, and the texts are found.
        again = client.cli(*command, "-q")
        assert again["stderr"] == f"{here}/out is finished already: nothing was pruned.\n", again
        done = client.cli("eval", str(here / "out"), "--metrics", "perplexity,sparsity", "-q")
        assert (done["status"], done["stderr"]) == (0, ""), done
        assert client.cli("card", str(here / "out"), "-q")["status"] == 0
        assert client.cli("push", str(here / "out"), "--repo-id", "again", "-q")["status"] == 0
        assert leaks(hub) == {}
        assert set(hub.files("ada/again")) == set(hub.files("ada/pruned"))
        # Another model of the same name is another model.
        other = here / "other" / "dense"
        shutil.copytree(dense, other)
        refused = client.cli("prune", str(other), *command[2:])
        assert refused["status"] == 1
        assert "with other settings (model: " in refused["stderr"]


def test_the_recipe_of_a_result_finds_what_it_names(home, dense):
    command = ("--method", "magnitude", "--evaluation", f"{home}/test.txt", *SMALL[4:], "--no-baseline", "-q")
    with LocalHub() as hub, HubClient(hub, home / "work", HOME=str(home), USER=USER) as client:
        assert client.cli("prune", str(dense), *command, "-o", "out")["status"] == 0
        done = client.cli("prune", "out/recipe.yaml", "--no-baseline", "-q", "-o", "twice")
        assert done["status"] == 0, done
        first, second = (home / "work" / name / "recipe.yaml" for name in ("out", "twice"))
        assert first.read_bytes() == second.read_bytes()
        # Somebody else has to say where it is.
        shutil.copytree(home / "work" / "out", home.parent / "elsewhere" / "theirs")
        done = client.cli("prune", str(home.parent / "elsewhere" / "theirs" / "recipe.yaml"), "-o", "thrice")
        assert done["status"] == 1
        assert "Error: evaluation text must be an existing file, got 'test.txt'." in done["stderr"]


@pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")
def test_a_training_with_both_callbacks(home, monkeypatch):
    signal(tiny("llama")).save_pretrained(home / "models" / "dense")
    folder = home / "work" / "trained"
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(home / "models" / "dense")
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    run = trainer(folder, S2FTCallback(S2FTConfig(budget=0.2)), model=model, **options)
    run.add_callback(FarmsLRCallback(FAST))
    run.train()
    run.save_model()
    run.save_state()
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"best_model_checkpoint": f"{folder}/checkpoint-2"}))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"{home}/models/dense"}))
    (folder / "README.md").write_text(f"# Mine\n\nIt was trained in {folder} by nobody.\n")
    kept = (folder / "adapter_config.json").read_bytes()
    with LocalHub() as hub, HubClient(hub, home / "work", HOME=str(home), USER=USER) as client:
        done = client.cli("push", str(folder), "--repo-id", "by-hand")
        assert done["status"] == 0, done
        assert leaks(hub) == {}
        assert (
            "were removed from the uploaded copy of README.md, adapter_config.json, trainer_state.json;"
            in done["stderr"]
        )
        assert (folder / "adapter_config.json").read_bytes() == kept
        assert b"trained in ./trained by nobody" in hub.files("ada/by-hand")["README.md"]
        assert json.loads(hub.files("ada/by-hand")["adapter_config.json"]) == {"base_model_name_or_path": "./dense"}
        assert client.cli("card", str(folder), "--yes", "-q")["status"] == 0
        assert client.cli("push", str(folder), "--repo-id", "by-us", "-q")["status"] == 0
        assert leaks(hub) == {}
        names = set(hub.files("ada/by-us"))
    assert {"config.json", "model.safetensors", REPORT_NAME, "farms_lr.jsonl", "s2ft_config.json", "README.md"} <= names
    assert not any(name.startswith(("checkpoint-", "runs/", "training_args")) for name in names)
    assert os.environ["HOME"] == str(home)
