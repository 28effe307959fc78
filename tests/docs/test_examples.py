"""The examples run at small size, as scripts and from the notebooks made of them; and the site has every page."""

import importlib.util
import json
import re
import runpy

import hf_farms_cards
import pytest
import tokenizers
import transformers
import yaml
from snippets import ROOT
from trainers import word_level

import hf_farms

EXAMPLES = ROOT / "docs" / "examples"
pytestmark = [
    pytest.mark.skipif(not EXAMPLES.exists(), reason="needs the source tree"),
    pytest.mark.filterwarnings("default"),
]


def notebooks():
    spec = importlib.util.spec_from_file_location("make_notebooks", EXAMPLES / "make_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def classifier(tmp_path):
    """A tiny DistilBERT with a tokenizer of numbers, and texts of them."""
    tokenizer = word_level()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0", pad_token="1")
    config = transformers.DistilBertConfig(vocab_size=100, dim=32, n_layers=3, n_heads=4, hidden_dim=48)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"text": f"{n} {n + 1} {n + 2}", "label": n % 2}) for n in range(2, 34)]
    for split in ("train", "validation"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    return {"MODEL": tmp_path / "model", "DATASET": tmp_path / "data"}


@pytest.fixture
def chat(tmp_path):
    """The demo model, and texts for it."""
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"text": f"The number {n} comes before the number {n + 1}."}) for n in range(16)]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    return {"MODEL": hf_farms.demo.demo_model(), "DATASET": tmp_path / "data", "BUDGET": 0.05}


def run(name, tmp_path, monkeypatch, **options):
    monkeypatch.chdir(tmp_path)
    for option, value in options.items():
        monkeypatch.setenv(option, str(value))
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_text_classification(classifier, tmp_path, monkeypatch, capsys):
    values = run("text_classification.py", tmp_path, monkeypatch, STEPS=4, **classifier)
    assert len(values["factors"]) == 3
    printed = capsys.readouterr().out
    assert "eval_accuracy" in printed
    assert re.search(r"layer\.2/factor: \d\.\d\d", printed)
    assert {"README.md", "farms_lr.md", "farms_lr.jsonl"} <= {path.name for path in (tmp_path / "emotions").iterdir()}


def test_sft_with_s2ft(chat, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl", reason="trl is not installed")
    run("sft_s2ft.py", tmp_path, monkeypatch, STEPS=2, **chat)
    assert "merged = trained: True" in capsys.readouterr().out
    assert (tmp_path / "sft-s2ft" / "lora" / "adapter_model.safetensors").is_file()


def test_prune_recover_push(tmp_path, monkeypatch, capsys):
    values = run("prune_recover_push.py", tmp_path, monkeypatch, SAMPLES=4)
    printed = capsys.readouterr().out
    assert "zeros in the pruned layers: 50.0%" in printed
    assert "set REPO=<you>/<name> to upload pruned" in printed
    assert values["results"] is not None


def test_monitor(tmp_path, monkeypatch, capsys):
    run("monitor.py", tmp_path, monkeypatch, STEPS=3)
    printed = capsys.readouterr().out
    assert re.search(r"step +1: block 3 2\.\d+, block 5 2\.\d+, mean of the others 1\.\d+", printed)
    assert "farms_lr.jsonl" in printed


def test_notebooks_are_made_from_the_scripts():
    module = notebooks()
    for name in module.SCRIPTS:
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        written = (EXAMPLES / name).with_suffix(".ipynb").read_text(encoding="utf-8")
        assert written == module.notebook(text), "run python docs/examples/make_notebooks.py"
        cells = json.loads(written)["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        compile(code, name, "exec")
        assert {line for line in text.splitlines() if line and line[0] != "#"} <= set(code.splitlines())


def navigation(entries):
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from navigation(target) if isinstance(target, list) else [target]


def test_every_page_has_a_place_in_the_navigation():
    # The ids of icons and the like are those of Material.
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    places = [place for place in navigation(site["nav"]) if not place.startswith("https://")]
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(places) == sorted(pages)


def test_the_api_pages_have_every_public_name():
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    public = {f"hf_farms.{name}" for name in hf_farms.__all__}
    assert public <= documented
    assert {f"hf_farms_cards.{name}" for name in hf_farms_cards.__all__} <= documented
