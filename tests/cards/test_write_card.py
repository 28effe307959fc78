"""Cards in real folders: what is written, that the quick start runs, that figures suit light and dark pages."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from cards import both, demo, full, minimal, s2ft
from families import family_model
from hf_farms_cards import render_card, write_card
from hf_farms_cards.figures.blocks import draw_blocks
from hf_farms_cards.figures.style import CARD_WIDTH, DARK, LIGHT
from matplotlib.colors import to_hex
from matplotlib.image import imread
from quick_start import quick_start, run

from hf_farms.demo import demo_model
from hf_farms.errors import OutputError


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(demo_model(), tmp_path / "pruned", ignore=shutil.ignore_patterns("README.md"))
    return tmp_path / "pruned"


@pytest.mark.parametrize("chat", [False, True])
def test_the_quick_start_runs_and_prints(chat, folder, monkeypatch):
    if chat:
        template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        (folder / "chat_template.jinja").write_text(template)
    code = quick_start(write_card(demo(), folder))
    assert 'name = "pruned"' in code
    assert ("apply_chat_template" in code) == chat
    text = run(code, folder, monkeypatch)
    assert text.startswith("The people of this country") != chat
    assert len(text.split()) > 5


def test_the_quick_start_of_what_writes_no_text_counts_zeros(tmp_path, monkeypatch):
    model = family_model("vit")
    next(p for p in model.parameters() if p.ndim == 2).data[:] = 0
    model.save_pretrained(tmp_path / "m")
    shown = run(quick_start(write_card(demo(), tmp_path / "m")), tmp_path / "m", monkeypatch)
    zeros = sum(int((p == 0).sum()) for p in model.parameters()) / model.num_parameters()
    assert shown == f"{zeros:.2%} of the parameters are zero"
    assert zeros > 0.01


def test_the_quick_start_without_a_tokenizer_loads_the_model_alone(folder, monkeypatch):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    code = quick_start(write_card(s2ft(), folder))
    assert "Tokenizer" not in code
    assert run(code, folder, monkeypatch).startswith("tensor([[   5,    6,    7,    8,")
    code = quick_start(write_card(demo(), folder))
    assert "Tokenizer" not in code
    assert run(code, folder, monkeypatch).endswith("of the parameters are zero")


def test_the_folder_has_everything_that_the_card_shows(folder):
    (folder / "recipe.yaml").write_text("model: demo\n# mine\n")
    card = write_card(demo(), folder, repo_id="me/y")
    text = card.read_text(encoding="utf-8")
    assert "```yaml\nmodel: demo\n# mine\n```" in text
    images = re.findall(r"!\[.*?\]\((.*?)#hf-(light|dark)-mode-only\)", text)
    assert [theme for _, theme in images] == ["light", "dark"]
    assert {path.relative_to(folder).as_posix() for path in (folder / "figures").iterdir()} == {
        name for name, _ in images
    }
    assert not list(folder.rglob("*.tmp"))


def test_a_card_that_is_written_again_keeps_its_repository(folder):
    first = write_card(demo(), folder, repo_id="me/y").read_text(encoding="utf-8")
    assert write_card(demo(), folder).read_text(encoding="utf-8") == first
    assert 'name = "me/z"' in write_card(demo(), folder, repo_id="me/z").read_text(encoding="utf-8")
    (folder / "README.md").write_text('name = "evil/y"\n')
    assert 'name = "pruned"' in write_card(demo(), folder).read_text(encoding="utf-8")


def test_a_card_in_an_unfinished_folder_has_the_name_to_be(tmp_path):
    (tmp_path / "x.partial").mkdir()
    assert 'from_pretrained("x")' in write_card(demo(), tmp_path / "x.partial").read_text(encoding="utf-8")


def test_broken_files_beside_it_do_no_harm(folder):
    (folder / "config.json").write_text("{")
    (folder / "tokenizer_config.json").write_text("[1]")
    assert "AutoModelForCausalLM" in write_card(demo(), folder).read_text(encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"architectures": []}))
    assert "AutoModelForCausalLM" in write_card(demo(), folder).read_text(encoding="utf-8")


def test_a_card_that_cannot_be_rendered_leaves_the_old_one(folder):
    before = write_card(demo(), folder).read_text(encoding="utf-8")
    with pytest.raises(AttributeError, match="NoneType"):
        write_card(replace(demo(), blocks=(None,)), folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("make", [demo, full, minimal, both])
def test_figures_suit_light_and_dark_pages(make, tmp_path):
    write_card(make(), tmp_path)
    figures = sorted((tmp_path / "figures").iterdir())
    assert len(figures) == (4 if make is both else 2)
    for path in figures:
        pixels = imread(path)
        assert pixels.shape[1] == CARD_WIDTH * 200
        palette = DARK if path.stem.endswith("-dark") else LIGHT
        assert to_hex(pixels[0, 0, :3]) == palette.page
    again = tmp_path / "again"
    again.mkdir()
    write_card(make(), again)
    assert all((again / "figures" / path.name).read_bytes() == path.read_bytes() for path in figures)


def test_the_figure_shows_both_alphas_with_errors_and_each_sparsity(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("hf_farms_cards.figures.blocks.save_figure", lambda figure, path: drawn.append(figure))
    report = full()
    draw_blocks(report, tmp_path / "a.png")
    top, bottom = drawn[0].axes
    dense, pruned = top.containers
    assert (dense.get_label(), pruned.get_label()) == ("dense", "pruned")
    assert dense.lines[0].get_ydata().tolist() == [block.alpha for block in report.before.blocks]
    low, high = dense.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(0.009)
    tops = [bar.get_y() + bar.get_height() for bar in bottom.patches]
    assert tops == pytest.approx([100 * block.sparsity for block in report.blocks])
    low, high = bottom.get_ylim()
    assert low < min(tops) < max(tops) < high
    draw_blocks(replace(report, before=None, after=None), tmp_path / "b.png")
    assert len(drawn[1].axes) == 1


def test_python_alone_gets_a_card_too():
    report = replace(demo(), command=None)
    assert "prune(model, PruneConfig(), calibration=batches)" in render_card(report)


@pytest.mark.parametrize(
    ("recover", "allocation", "call"),
    [
        ("none", "farms", "PruneConfig()"),
        ("none", "uniform", 'PruneConfig(allocation="uniform")'),
        ("submodule", "farms", 'PruneConfig(allocation="farms", recover="submodule")'),
        ("submodule", "uniform", 'PruneConfig(recover="submodule")'),
    ],
)
def test_the_call_leaves_out_the_allocation_that_is_its_default(recover, allocation, call):
    report = demo()
    config = replace(report.config, recover=recover, recover_passes=None, recover_rate=None, allocation=allocation)
    # As reports hold it.
    config = config.settled(report.calibration.num_sequences)
    assert f"prune(model, {call}, " in render_card(replace(report, config=config, command=None))


def test_links_in_a_folder_are_neither_read_nor_written_through(folder, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    for name in ("token", "figure"):
        (private / name).write_text("geheim")
    (folder / "recipe.yaml").symlink_to(private / "token")
    (folder / "README.md.tmp").symlink_to(private / "token")
    card = write_card(full(), folder)
    assert "geheim" not in card.read_text(encoding="utf-8")
    figure = folder / "figures" / "blocks.png"
    for place, target in ((figure, private / "figure"), (card, private / "token")):
        place.unlink()
        place.symlink_to(target)
        with pytest.raises(OutputError, match=f"{place.name} must be a regular file or not exist, got the link"):
            write_card(full(), folder)
        place.unlink()
    figure.parent.rename(folder / "old")
    figure.parent.symlink_to(private)
    with pytest.raises(OutputError, match="folder must hold no link where hf-farms writes"):
        write_card(full(), folder)
    assert {path.name: path.read_text() for path in private.iterdir()} == {"token": "geheim", "figure": "geheim"}
