"""`hf-farms card DIR`, on folders of real prunings and with the real client against a local Hub."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from cards import demo, farms_lr
from hf_farms_cli.app import app
from hub_client import HubClient
from local_hub import LocalHub
from typer.testing import CliRunner

from hf_farms.reports import REPORT_NAME, PruneReport

pytestmark = pytest.mark.filterwarnings("default")  # what users of the command see is decided by the command
runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


def shown(done):
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "demo-sparse"
    done = run("prune", "demo", "--method", "magnitude", "--evaluation", "none", "-o", folder, "-q")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def folder(pruned, tmp_path):
    shutil.copytree(pruned, tmp_path / "demo-sparse")
    return tmp_path / "demo-sparse"


def test_the_card_is_written_again_with_its_figures(folder):
    for path in [folder / "README.md", *(folder / "figures").iterdir()]:
        path.unlink()
    done = run("card", folder, "--format", "human")
    assert done.exit_code == 0, done.output
    assert f"card: {folder / 'README.md'}" in done.stdout
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert 'name = "demo-sparse"' in text
    assert (folder / "recipe.yaml").read_text(encoding="utf-8").strip() in text
    assert {path.name for path in (folder / "figures").iterdir()} == {"blocks.png", "blocks-dark.png"}


def test_what_the_report_says_now_is_on_the_card(folder):
    report = PruneReport.load(folder / REPORT_NAME)
    replace(report, perplexity=demo().perplexity).save(folder / REPORT_NAME)
    assert run("card", folder, "--repo-id", "me/sparse", "-q").stdout.strip() == str(folder / "README.md")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "54.57 → 60.29" in text
    assert 'name = "me/sparse"' in text
    # The repository stays when the next command does not name it.
    assert json.loads(run("card", folder, "--json").stdout) == {"card": str(folder / "README.md")}
    assert 'name = "me/sparse"' in (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_can_go_elsewhere(folder, tmp_path):
    before = (folder / "README.md").read_text(encoding="utf-8")
    done = run("card", folder, "-o", "-", "--repo-id", "me/other")
    assert done.stdout.startswith("---\nlibrary_name: transformers\n")
    assert 'name = "me/other"' in done.stdout
    done = run("card", folder, "-o", tmp_path / "card.md")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == (run("card", folder, "-o", "-").stdout)
    assert (tmp_path / "figures" / "blocks-dark.png").is_file()
    assert (folder / "README.md").read_text(encoding="utf-8") == before


def test_figures_of_others_beside_the_card_are_not_replaced(folder, tmp_path):
    (tmp_path / "figures").mkdir()
    (theirs := tmp_path / "figures" / "blocks.png").write_bytes(b"drawn by hand")
    done = run("card", folder, "-o", tmp_path / "card.md")
    assert done.exit_code == 1
    assert "--output must not replace what others drew" in shown(done)
    assert theirs.read_bytes() == b"drawn by hand"
    assert not (tmp_path / "card.md").exists()
    done = run("card", folder, "-o", tmp_path / "card.md", "--yes")
    assert done.exit_code == 0, done.output
    assert theirs.read_bytes() != b"drawn by hand"


def test_what_others_wrote_is_not_replaced(folder, tmp_path):
    (folder / "README.md").write_text("# Mine\n")
    done = run("card", folder)
    assert done.exit_code == 1
    assert "card must not replace what others wrote" in shown(done)
    assert "--yes" in shown(done)
    assert (folder / "README.md").read_text() == "# Mine\n"
    assert run("card", folder, "--yes").exit_code == 0
    assert "- hf-farms" in (folder / "README.md").read_text()


def prepare(kind, folder):
    if kind == "no report":
        (folder / REPORT_NAME).unlink()
    elif kind == "newer":
        data = json.loads((folder / REPORT_NAME).read_text())
        (folder / REPORT_NAME).write_text(json.dumps(data | {"schema_version": 3}))
    elif kind == "broken":
        (folder / REPORT_NAME).write_bytes(b"\xff{")
    elif kind == "other":
        (folder / REPORT_NAME).write_text('{"schema_version": 1}')


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("no report", [], f"folder must hold {REPORT_NAME}, got"),
        ("newer", [], "schema_version must be at most 2, got 3. Upgrade hf-farms: pip install -U hf-farms."),
        ("broken", [], "report must be a JSON object"),
        ("other", [], "report must be a PruneReport"),
        ("", ["-o", "no/such/folder/card.md"], "output must be a file in an existing folder"),
        ("", ["-o", "."], "output must be a file in an existing folder"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(kind, arguments, message, folder, monkeypatch):
    prepare(kind, folder)
    monkeypatch.chdir(folder.parent)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run("card", folder, *arguments)
    assert done.exit_code == 1
    assert message in shown(done)
    assert shown(done).count("Error:") == 1
    assert "Traceback" not in done.stderr
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_not_there():
    assert "folder must exist, got 'nnn" in shown(run("card", "n" * 300))
    done = run("card", "nowhere")
    assert "folder must exist, got 'nowhere'. Check the path." in shown(done)


@pytest.fixture
def trained(tmp_path):
    """The output folder of a training of a model on the Hub, whose license nobody has asked for."""
    (tmp_path / "trained").mkdir()
    replace(farms_lr(), model="meta/Llama-3.2-1B", base=None).save(tmp_path / "trained" / REPORT_NAME)
    return tmp_path / "trained"


def test_a_trained_model_inherits_the_license_of_its_base(trained, tmp_path):
    card = b"---\nlicense: llama3.2\nlanguage: [en]\n---\n"
    with LocalHub() as hub, HubClient(hub, tmp_path) as client:
        hub.add("meta/Llama-3.2-1B", {"config.json": b"{}", "README.md": card, "LICENSE.txt": b"terms"})
        done = client.cli("card", trained)
        assert done["status"] == 0, done
        text = (trained / "README.md").read_text(encoding="utf-8")
        header = yaml.safe_load(text.split("---\n")[1])
        assert (header["license"], header["base_model"]) == ("llama3.2", "meta/Llama-3.2-1B")
        assert "**Built with Llama**" in text
        assert "`LICENSE.txt`, `NOTICE`" in text
        assert (trained / "LICENSE.txt").read_bytes() == b"terms"
        assert "Llama 3.2 Community License" in (trained / "NOTICE").read_text(encoding="utf-8")


def test_without_the_hub_the_card_is_written_with_a_warning(trained):
    done = run("card", trained)  # HF_HUB_OFFLINE is set for all tests
    assert done.exit_code == 0, done.output
    assert "Warning: The card cannot name the license of the base model" in shown(done)
    text = (trained / "README.md").read_text(encoding="utf-8")
    assert "see [its page](https://huggingface.co/meta/Llama-3.2-1B)" in text


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_hub_that_fails_costs_the_license_and_not_the_card(status, trained, tmp_path):
    """As without a network: the card is written, and says where the license is named."""
    with LocalHub() as hub, HubClient(hub, tmp_path) as client:
        hub.add("meta/Llama-3.2-1B", {"config.json": b"{}"})
        hub.fail_next("GET /api/models/meta/Llama-3.2-1B", status=status, times=100)
        done = client.cli("card", trained)
    assert done["status"] == 0, done
    assert "Warning: The card cannot name the license of the base model: " in " ".join(done["stderr"].split())
    assert "see [its page]" in (trained / "README.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in trained.iterdir()) == ["README.md", "figures", REPORT_NAME]
