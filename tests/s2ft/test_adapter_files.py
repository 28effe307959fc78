"""Adapters on disk: round trips, damaged and foreign files, and processes killed while they save."""

import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from adapters import WEIGHT, change_slices, one_layer, same, state
from models import tiny
from processes import MOMENTS, finished
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft
from hf_farms.errors import DataError, OutputError
from hf_farms.reports import versions
from hf_farms.s2ft.adapters.files import digest_of
from hf_farms.s2ft.adapters.patches import fingerprint
from hf_farms.s2ft.saving import CONFIG_NAME, WEIGHTS_NAME, load_selection, save_selection
from hf_farms.s2ft.surgery import selection_of

CONFIG = S2FTConfig(budget=0.1, roles=("v", "down"), seed=3, layout="permuted")


@pytest.fixture
def model():
    model = tiny("llama", dtype=torch.bfloat16)
    model.config._name_or_path, model.config._commit_hash = "someone/model", "abc123"
    apply_s2ft(model, CONFIG)
    return change_slices(model)


@pytest.fixture
def saved(model, tmp_path):
    S2FTAdapter.from_model(model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def equal(one, other):
    """Whether two adapters have the same fields and bits."""
    fields = ("base_model", "base_revision", "selection", "channels", "dtype")
    alike = all(getattr(one, name) == getattr(other, name) for name in fields)
    return (
        alike
        and one.patches.keys() == other.patches.keys()
        and all(
            (p.name, p.shape, p.side, p.dim, p.base_fingerprint) == (q.name, q.shape, q.side, q.dim, q.base_fingerprint)
            and torch.equal(p.indices, q.indices)
            and torch.equal(p.values.view(torch.int16), q.values.view(torch.int16))
            and torch.equal(p.base.view(torch.int16), q.base.view(torch.int16))
            for p, q in zip(one.patches.values(), other.patches.values(), strict=True)
        )
    )


def test_an_adapter_comes_back(model, saved):
    adapter = S2FTAdapter.from_model(model)
    for name in (saved, str(saved)):
        assert equal(S2FTAdapter.from_pretrained(name), adapter)
    assert sorted(os.listdir(saved)) == [WEIGHTS_NAME, CONFIG_NAME]
    tensors = load_file(saved / WEIGHTS_NAME)
    weights, layers = list(adapter.patches), selection_of(model).channels
    ends = {f"{name}.{end}" for name in weights for end in ("index", "values", "base")}
    assert tensors.keys() == ends | {f"{name}.channels" for name in layers}
    patch = adapter.patches[WEIGHT]
    assert tensors[f"{WEIGHT}.values"].shape == (32, len(patch.indices))
    assert tensors[f"{WEIGHT}.values"].dtype == torch.bfloat16
    content = json.loads((saved / CONFIG_NAME).read_text())
    assert (content["schema_version"], content["dtype"]) == (2, "bfloat16")
    assert (content["base_model"], content["base_revision"]) == ("someone/model", "abc123")
    assert content["selection"]["layout"] == "permuted"
    assert content["versions"] == versions()
    assert content["weights"][WEIGHT]["sha256"]["base"] == patch.base_fingerprint
    with safe_open(saved / WEIGHTS_NAME, framework="pt") as file:
        assert json.loads(file.metadata()["s2ft"]) == content


def test_the_selection_of_an_adapter(model, saved):
    assert load_selection(saved) == selection_of(model)
    again = tiny("llama", dtype=torch.bfloat16)
    apply_s2ft(again, selection=load_selection(saved))
    assert selection_of(again) == selection_of(model)


def test_an_adapter_without_a_selection(tmp_path):
    base, tuned = tiny("llama"), tiny("llama")
    one_layer([1, 5]).merge(tuned)
    adapter = S2FTAdapter.from_training(tuned, base)
    adapter.save_pretrained(tmp_path)
    assert equal(S2FTAdapter.from_pretrained(tmp_path), adapter)
    with pytest.raises(DataError, match=r"must hold a selection, got an adapter that was made by comparing two models"):
        load_selection(tmp_path)


@pytest.mark.parametrize("name", ["meta/Llama-3.1", "demo", "./my model", "../Modèle (2)", "./John's", "/data/x_y-z"])
def test_names_of_bases_come_back(tmp_path, name):
    adapter = replace(one_layer([1, 5]), base_model=name, base_revision="refs/pr/1")
    adapter.save_pretrained(tmp_path)
    back = S2FTAdapter.from_pretrained(tmp_path)
    assert (back.base_model, back.base_revision) == (name, "refs/pr/1")


def test_a_base_whose_name_cannot_be_printed_is_unknown(tmp_path):
    base, tuned = tiny("llama"), tiny("llama")
    one_layer([1, 5]).merge(tuned)
    base.config._name_or_path = "./two\nlines"
    S2FTAdapter.from_training(tuned, base).save_pretrained(tmp_path)
    assert S2FTAdapter.from_pretrained(tmp_path).base_model is None


def test_an_adapter_without_patches_is_refused():
    with pytest.raises(
        ValueError, match=r"patches must be a dict with at least one WeightPatch, got {}\. Make it of a"
    ):
        S2FTAdapter(patches={})
    with pytest.raises(ValueError, match="patches must be a dict with at least one WeightPatch"):
        replace(one_layer([1, 5]), patches={})


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("base_model", "", "base_model must be None, a Hub id or a path, got ''. Leave it out: dataclasses.replace"),
        ("base_model", 'a"); print("b', "base_model must be None, a Hub id or a path, got"),
        ("base_model", "meta/tiny\x1b[2J", "base_model must be None, a Hub id or a path, got"),
        ("base_model", 3, "base_model must be None, a Hub id or a path, got 3"),
        ("base_revision", "main\n", "base_revision must be None or a revision, got"),
    ],
)
def test_names_that_could_not_be_loaded_are_not_saved(tmp_path, field, value, match):
    with pytest.raises(ValueError, match=match):
        replace(one_layer([1, 5]), **{field: value}).save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_the_weights_file_is_enough(saved):
    (saved / CONFIG_NAME).unlink()
    assert len(S2FTAdapter.from_pretrained(saved)) == 6


def test_a_selection_of_earlier_versions_says_that_it_holds_no_slices(model, tmp_path):
    save_selection(selection_of(model), tmp_path)
    assert load_selection(tmp_path) == selection_of(model)
    with pytest.raises(
        DataError, match="must hold an adapter, got a selection only: channels without trained slices"
    ) as error:
        S2FTAdapter.from_pretrained(tmp_path)
    assert "from_training(model, base)" in error.value.hint
    S2FTAdapter.from_model(model).save_pretrained(tmp_path)
    assert len(S2FTAdapter.from_pretrained(tmp_path)) == 6


def rewritten(change=lambda tensors, content: None, *, sealed=True):
    """Damage: the weights file written again after a change; sealed: the digest fits the description again."""

    def damage(folder):
        tensors = load_file(folder / WEIGHTS_NAME)
        content = json.loads((folder / CONFIG_NAME).read_text())
        change(tensors, content)
        if sealed:
            content["digest"] = digest_of(content)
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt", "s2ft": json.dumps(content)})
        (folder / CONFIG_NAME).unlink()

    return damage


def tensor(end, make):
    return rewritten(lambda tensors, content: tensors.update({f"{WEIGHT}.{end}": make(tensors[f"{WEIGHT}.{end}"])}))


def index(*channels):
    """An index of these channels, with a SHA-256 that fits."""

    def change(tensors, content):
        channel = torch.tensor(channels)
        entry = content["weights"][WEIGHT]
        for end in ("values", "base"):
            part = tensors[f"{WEIGHT}.{end}"][:, : len(channels)].contiguous()
            tensors[f"{WEIGHT}.{end}"], entry["sha256"][end] = part, fingerprint(part)
        tensors[f"{WEIGHT}.index"], entry["sha256"]["index"], entry["channels"] = (
            channel,
            fingerprint(channel),
            len(channel),
        )

    return rewritten(change)


def field(name, value):
    return rewritten(lambda tensors, content: content.update({name: value}))


def entry(name, value, **options):
    return rewritten(lambda tensors, content: content["weights"][WEIGHT].update({name: value}), **options)


def named(name):
    def change(tensors, content):
        content["weights"][name] = content["weights"].pop(WEIGHT)
        for end in ("index", "values", "base"):
            tensors[f"{name}.{end}"] = tensors.pop(f"{WEIGHT}.{end}")

    return rewritten(change)


def truncate(folder):
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-9])


def flip(folder):
    path = folder / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def edit(folder):
    path = folder / CONFIG_NAME
    path.write_text(path.read_text().replace("someone/model", "another/model"))


def swap_side(folder):
    path = folder / CONFIG_NAME
    path.write_text(path.read_text().replace('"side": "inputs"', '"side": "outputs"'))


def flipped(values):
    values = values.clone()
    values.view(-1)[0] += 1
    return values


DAMAGE = {
    "gone": (lambda folder: (folder / WEIGHTS_NAME).unlink(), "no s2ft_adapter.safetensors"),
    "truncated": (truncate, r"a truncated or corrupted s2ft_adapter\.safetensors"),
    "empty": (lambda folder: (folder / WEIGHTS_NAME).write_bytes(b""), "a truncated or corrupted"),
    "one bit": (flip, "that were changed: their SHA-256 is another one"),
    "edited copy": (edit, r"a s2ft_config\.json that was changed: it does not fit its digest"),
    "no JSON": (lambda folder: (folder / CONFIG_NAME).write_text('{"schema'), "line 1"),
    "a list": (lambda folder: (folder / CONFIG_NAME).write_text("[]"), r"a s2ft_config\.json that is not an object"),
    "foreign": (lambda folder: save_file({"a": torch.ones(1)}, folder / WEIGHTS_NAME), "without the description"),
    "edited description": (
        rewritten(lambda tensors, content: content.update(base_model="other"), sealed=False),
        "its digest is another one",
    ),
    "schema": (field("schema_version", 99), "schema version 99, which is not known"),
    "no dtype": (field("dtype", "int8"), "dtype 'int8', not one of float32, bfloat16"),
    "other dtype": (field("dtype", "float32"), r"bfloat16 instead of float32 in model\.layers"),
    "no weights": (field("weights", {}), "a description without weights"),
    "base id": (field("base_model", 3), "base_model 3, which is not a text"),
    "escape in base": (
        field("base_model", "meta/tiny\x1b[2J"),
        r"base_model 'meta/tiny\\x1b\[2J', which is not a Hub id or a path",
    ),
    "lines in base": (field("base_model", "meta/tiny\nok"), r"base_model 'meta/tiny\\nok', which is not a Hub id"),
    "reversed base": (field("base_model", "meta/\u202etiny"), r"base_model 'meta/\\u202etiny', which is not a Hub id"),
    "code in base": (field("base_model", 'a"); print("b'), "base_model 'a.*', which is not a Hub id or a path"),
    "empty base": (field("base_model", ""), "base_model '', which is not a Hub id or a path"),
    "escape in revision": (
        field("base_revision", "main\x1b]0;x\x07"),
        r"base_revision 'main\\x1b.*', which is not a revision",
    ),
    "lines in revision": (field("base_revision", "main\n"), r"base_revision 'main\\n', which is not a revision"),
    "selection": (field("selection", {"budget": 3}), "budget must be above 0 and below 1, got 3"),
    "path": (named("../../etc/passwd"), r"the name '\.\./\.\./etc/passwd', which is not that of a weight"),
    "absolute path": (named("/tmp/x"), "the name '/tmp/x', which is not that of a weight"),
    "dots": (named("a..b"), r"the name 'a\.\.b', which is not that of a weight"),
    "missing tensor": (
        rewritten(lambda tensors, content: tensors.pop(f"{WEIGHT}.values")),
        f"do not fit the description, such as '{WEIGHT[:20]}.*values'",
    ),
    "additional tensor": (
        rewritten(lambda tensors, content: tensors.update(more=torch.ones(1))),
        "do not fit the description, such as 'more'",
    ),
    "values": (tensor("values", flipped), rf"values of {WEIGHT}\.values that were changed"),
    "base": (tensor("base", flipped), rf"values of {WEIGHT}\.base that were changed"),
    "index": (tensor("index", lambda index: index + 1), rf"values of {WEIGHT}\.index that were changed"),
    "index of int32": (tensor("index", lambda index: index.int()), rf"int32 instead of int64 in {WEIGHT}\.index"),
    "values of float32": (tensor("values", lambda values: values.float()), r"float32 instead of bfloat16 in .*values"),
    "shape of values": (
        tensor("values", lambda values: values[:-1].clone()),
        r"shape \[31, .*\] instead of .*values",
    ),
    "shape of base": (tensor("base", lambda values: values.mT.contiguous()), r"shape \[.*\] instead of \[32, .*base"),
    "out of range": (index(1, 48), rf"channels of {WEIGHT} that are not ascending numbers from 0 to 47"),
    "negative": (index(-1, 4), rf"channels of {WEIGHT} that are not ascending numbers from 0 to 47"),
    "duplicated": (index(4, 4), rf"channels of {WEIGHT} that are not ascending numbers from 0 to 47"),
    "unsorted": (index(5, 4), rf"channels of {WEIGHT} that are not ascending numbers from 0 to 47"),
    "shape": (entry("shape", [32]), rf"shape \[32\] of {WEIGHT}"),
    "side": (entry("side", "left"), rf"side 'left' and dim 1 of {WEIGHT}"),
    "no side": (entry("side", None), rf"side nothing and dim 1 of {WEIGHT}"),
    "other side": (entry("side", "outputs", sealed=False), "its digest is another one"),
    "other side in the copy": (swap_side, r"a s2ft_config\.json that was changed: it does not fit its digest"),
    "dim": (entry("dim", 2), rf"side 'inputs' and dim 2 of {WEIGHT}"),
    "other dim": (entry("dim", 0, sealed=False), "its digest is another one"),
    "number": (entry("channels", 0), f"0 channels of {WEIGHT}"),
    "no hashes": (entry("sha256", {}), f"no SHA-256 of the tensors of {WEIGHT}"),
    "no flag": (entry("includes_base", None), f"includes_base nothing of {WEIGHT}"),
}


@pytest.mark.parametrize(("damage", "match"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_and_foreign_files_are_refused(saved, damage, match):
    damage(saved)
    with pytest.raises(DataError, match=rf"adapter' must hold an adapter of S2FT .*got (?s:.)*({match})") as error:
        S2FTAdapter.from_pretrained(saved)
    assert error.value.hint


def test_a_refusal_names_the_damaged_file(saved):
    (saved / CONFIG_NAME).write_text("{")
    with pytest.raises(DataError, match=r"must hold an adapter of S2FT \(s2ft_config\.json\), got"):
        S2FTAdapter.from_pretrained(saved)
    truncate(saved)
    with pytest.raises(DataError, match=r"must hold an adapter of S2FT \(s2ft_adapter\.safetensors\), got"):
        S2FTAdapter.from_pretrained(saved)


def test_other_channels_of_the_selection_are_refused(saved):
    rewritten(lambda tensors, _: tensors.update({k: v + 1 for k, v in tensors.items() if k.endswith("channels")}))(
        saved
    )
    with pytest.raises(DataError, match=r"channels of model\.layers.* that were changed"):
        load_selection(saved)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="nowhere' must hold an adapter of S2FT"):
        S2FTAdapter.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="name must be a folder or an id of the Hub, got 3"):
        S2FTAdapter.from_pretrained(3)


def test_links_and_folders_are_not_replaced(model, tmp_path):
    adapter, elsewhere = S2FTAdapter.from_model(model), tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / WEIGHTS_NAME).symlink_to(elsewhere)
    with pytest.raises(OutputError, match=r"must be a regular file or not exist, got the link"):
        adapter.save_pretrained(tmp_path / "a")
    (tmp_path / "b" / CONFIG_NAME).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"must be a file, got the folder"):
        adapter.save_pretrained(tmp_path / "b")
    assert elsewhere.read_text() == "mine"
    assert os.listdir(tmp_path / "b") == [CONFIG_NAME]


# Each save runs in a process of its own, which kills itself before the n-th change of a file; with `half`, before the
# n-th change that is a rename, whose file loses half of its content as if it were still being written.
KILLED = f"""
import json, os, shutil, signal, sys
sys.path.insert(0, {str(MOMENTS)!r})
from moment import Moment
from hf_farms import S2FTAdapter

new = S2FTAdapter.from_pretrained("../new")
results = []
for before in ("adapter", "selection"):
    for half in (False, True) if before == "adapter" else (False,):
        change, code = 0, None
        while code != 0:
            change += 1
            folder = f"{{before}}-{{half}}-{{change}}"
            shutil.copytree(f"../{{before}}", folder)
            child = os.fork()
            if child == 0:
                os.chdir(folder)
                Moment(signal.SIGKILL, change=change, half=half)
                new.save_pretrained(".")
                os._exit(0)
            code = os.waitpid(child, 0)[1]
            results.append([before, folder, code])
print(json.dumps(results))
"""


def test_a_killed_save_leaves_the_old_adapter_or_the_new_one(model, tmp_path):
    old, new = one_layer([1, 5], dtype=torch.bfloat16), S2FTAdapter.from_model(model)
    new.save_pretrained(tmp_path / "new")
    old.save_pretrained(tmp_path / "adapter")
    save_selection(selection_of(model), tmp_path / "selection")
    (tmp_path / "work").mkdir()
    run = finished([sys.executable, "-c", KILLED], cwd=tmp_path / "work")
    assert run.returncode == 0, run.stderr
    states = []
    for before, folder, code in json.loads(run.stdout.splitlines()[-1]):
        path = tmp_path / "work" / folder
        assert code in (0, 9)
        if before == "selection" and "selection only" in _refusal(path):
            assert load_selection(path) == selection_of(model)
            states.append((before, "old"))
            continue
        loaded = S2FTAdapter.from_pretrained(path)
        is_old, is_new = equal(loaded, old), equal(loaded, new)
        assert is_old != is_new
        assert is_new or code == 9
        states.append((before, "new" if is_new else "old"))
    # Killed before, between and after the two files; in the middle of one too over an adapter.
    for before, times in (("adapter", 2), ("selection", 1)):
        assert states.count((before, "old")) >= times
        assert states.count((before, "new")) >= 2


def _refusal(path):
    try:
        S2FTAdapter.from_pretrained(path)
    except DataError as error:
        return str(error)
    return ""


def test_a_failed_write_leaves_the_old_adapter(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_farms.s2ft.adapters.files.save_file", fail)
    with pytest.raises(OutputError, match="could not be written: the disk is full"):
        one_layer([1, 5], dtype=torch.bfloat16).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_loaded_adapter_does_not_need_its_files(saved):
    adapter, base = S2FTAdapter.from_pretrained(saved), tiny("llama", dtype=torch.bfloat16)
    before = state(base)
    shutil.rmtree(saved)
    adapter.merge(base)
    adapter.unmerge(base)
    assert same(state(base), before)
