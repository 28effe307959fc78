import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from launch import IMPORTS

ROOT = Path(__file__).parents[1]
SOURCE = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the source tree")
# Named in an import, of one line or of several.
TRAINER = re.compile(r"^(from|import) .*\bTrainer\b|^ +Trainer,$", re.MULTILINE)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def check_index_page(metadata):
    """The page of a package index has no files beside it: every link and image must be absolute."""
    fields, _, page = metadata.partition("\n\n")
    assert "Description-Content-Type: text/markdown" in fields
    assert page.startswith("# hf-farms")
    # Links of markdown and of HTML, without code.
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"""(?:src|srcset|href)=["']([^"'\s]+)""", text)
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []


@SOURCE
def test_the_wheel_has_three_packages_and_a_small_demo(tmp_path):
    import build  # noqa: F401
    import hatchling  # noqa: F401

    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        files = {info.filename: info.file_size for info in wheel.infolist()}
        metadata = next(wheel.read(name).decode() for name in files if name.endswith(".dist-info/METADATA"))
    check_index_page(metadata)
    tops = {name.split("/")[0] for name in files if ".dist-info/" not in name}
    assert tops == {"hf_farms", "hf_farms_cli", "hf_farms_cards"}
    assert {f"{top}/py.typed" for top in tops} <= files.keys()
    demo = {name: size for name, size in files.items() if name.startswith("hf_farms/demo/")}
    assert sum(demo.values()) <= 5_200_000
    for folder in ("model", "model_healthy"):
        checkpoint = ("README.md", "config.json", "model.safetensors", "tokenizer.json")
        assert {f"hf_farms/demo/{folder}/{name}" for name in checkpoint} <= demo.keys()
    assert "hf_farms/demo/text/test.txt" in demo
    assert not {"hf_farms/demo/text/train.txt", "hf_farms/demo/card.md"} & demo.keys()
    assert "hf_farms_cards/templates/prune.md.j2" in files


@SOURCE
def test_imports_point_one_way():
    import importlinter  # noqa: F401

    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@SOURCE
def test_only_callbacks_and_distillation_import_the_trainer():
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("hf_farms", "cli", "model_cards")
        for path in (ROOT / folder).rglob("*.py")
        if TRAINER.search(path.read_text(encoding="utf-8")) and "callbacks" not in path.parts
    ]
    assert found == ["hf_farms/distillation/training.py"]


@pytest.mark.parametrize(
    "modules",
    [
        "hf_farms",
        "hf_farms.config",
        "hf_farms.reports",
        "hf_farms_cards",
        "hf_farms_cards.card, hf_farms_cards.figures.blocks",
        "hf_farms_cli.app",
    ],
)
def test_light_modules_load_nothing_heavy(modules):
    heavy = ("torch", "transformers", "evaluate", "datasets", "matplotlib", "huggingface_hub")
    loaded = python(f"import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_a_card_is_rendered_without_torch():
    code = (
        "import sys; from reports import pruned; from hf_farms_cards import render_card;"
        "render_card(pruned()); print('torch' in sys.modules)"
    )
    environment = {**os.environ, **IMPORTS}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names():
    names = python("import hf_farms; print(all(getattr(hf_farms, n) is not None for n in hf_farms.__all__))")
    assert names.strip() == "True"
    with pytest.raises(AttributeError, match="module 'hf_farms' has no attribute 'nonsense'"):
        getattr(__import__("hf_farms"), "nonsense")  # noqa: B009


@SOURCE
def test_torch_is_pinned_in_the_constraints_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.6" in project["dependencies"]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    assert len(pins) == 1


def test_the_package_knows_its_version():
    import hf_farms

    assert hf_farms.__version__ == version("hf-farms")
    assert "__version__" in dir(hf_farms)


@SOURCE
def test_links_of_the_readme_work_where_it_is_shown_alone():
    """PyPI shows it without the files beside it."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    own = [target for target in targets if target.startswith(urls["Source"] + "/blob/main/")]
    assert own
    for target in own:
        path, _, anchor = target.removeprefix(urls["Source"] + "/blob/main/").partition("#")
        assert (ROOT / path).is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target
