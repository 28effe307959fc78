"""`hf-farms adapter ...` on small checkpoints of several shards, and against a Hub on this machine."""

import json
import shutil

import pytest
import torch
from families import family_model
from hf_farms_cli.app import app
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny
from random_adapters import merged, random_adapter
from typer.testing import CliRunner

from hf_farms import S2FTAdapter

# A warning is a line of a command.
pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner(env={"COLUMNS": "200"})


def run(*arguments, status=0):
    done = runner.invoke(app, ["adapter", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done


def refused(*arguments, status=1):
    done = run(*arguments, status=status)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error:") == 1
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """base, math and code (disjoint adapters), mixed (overlaps with math), and tuned (math merged)."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny("llama", dtype=torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="30KB")
    known = {"base_model": "meta/tiny", "base_revision": "0" * 40}
    math = random_adapter(model, 1, channels=(3, 3), **known)
    random_adapter(model, 2, channels=(3, 3), exclude=[math], **known).save_pretrained(folder / "code")
    random_adapter(model, 3, channels=(20, 20), **known).save_pretrained(folder / "mixed")
    random_adapter(model, 3, include_base=False).save_pretrained(folder / "bare")
    math.save_pretrained(folder / "math")
    merged(model, math).save_pretrained(folder / "tuned", max_shard_size="30KB")
    return folder


def test_info_in_all_formats(made):
    shown = run("info", made / "math", "--format", "human").stdout
    assert "down_proj" in shown
    assert "o_proj" in shown
    assert "inputs" in shown
    assert (
        f"Base model: meta/tiny at {'0' * 40}. 18 channels of 6 weights in bfloat16, 1,152 bytes, with those" in shown
    )
    assert "model.layers.2.mlp.down_proj.weight" in run("info", made / "math", "--layers", "--format", "human").stdout
    assert "without the base" in run("info", made / "bare", "--format", "human").stdout
    rows = run("info", made / "math", "--format", "agent").stdout.splitlines()
    assert rows[0].split("\t") == ["layer", "side", "weights", "channels", "of"]
    assert rows[1].split("\t") == ["o_proj", "inputs", "3", "9", "96"]
    assert run("info", made / "math", "-q").stdout.split() == ["meta/tiny", "bfloat16", "6", "18", "1152"]
    summary = json.loads(run("info", made / "math", "--json").stdout)
    assert summary["channels"] == 18
    assert summary["includes_base"]
    assert summary["layers"][0] == {
        **{"layer": "o_proj", "side": "inputs", "weights": 3},
        **{"channels": 9, "least": 3, "most": 3, "size": 96, "entries": 288},
    }
    assert summary["patches"][0]["name"] == "model.layers.0.self_attn.o_proj.weight"


def test_merge_unmerge_and_diff(made, tmp_path):
    out = tmp_path / "out"
    done = run("merge", made / "base", made / "math", "-o", out, "--format", "human")
    assert done.stdout.splitlines() == ["✓ Merged", f"  folder: {out}"]
    assert contents(out) == contents(made / "tuned")
    assert json.loads(run("unmerge", out, made / "math", "-o", tmp_path / "back", "--json").stdout) == {
        "folder": str(tmp_path / "back")
    }
    assert contents(tmp_path / "back") == contents(made / "base")
    done = run("diff", made / "base", out, "-o", tmp_path / "diff", "--no-include-base", "--format", "agent")
    assert done.stdout == f"folder={tmp_path / 'diff'} weights=6 channels=18\n"
    assert (
        run("merge", made / "base", tmp_path / "diff", "-o", tmp_path / "again", "-q").stdout
        == f"{tmp_path / 'again'}\n"
    )
    assert contents(tmp_path / "again") == contents(out)


def test_fuse_prints_the_overlap(made, tmp_path):
    done = run("fuse", made / "math", made / "code", "-o", tmp_path / "both", "--format", "human")
    assert "overlap: 0.0%" in done.stdout
    fused = S2FTAdapter.from_pretrained(tmp_path / "both")
    assert all(len(patch.indices) == 6 for patch in fused.patches.values())
    done = run(
        *("fuse", made / "math", made / "mixed", "-o", tmp_path / "mixed", "--weight", "0.75", "--weight", "0.25"),
        *("--combination", "cat", "--format", "human"),
    )
    assert "Warning: adapters overlap in" in done.stderr
    assert "the output has the share of each weight" in done.stderr
    assert "Channels of more than one adapter" in done.stdout
    result = run("fuse", made / "math", made / "mixed", "-o", tmp_path / "json", "--json")
    assert 0 < json.loads(result.stdout)["overlap"] < 1


def test_export_prints_flags_and_bytes(made, tmp_path):
    done = run("export", made / "math", "-o", tmp_path / "lora", "--base", made / "base", "--format", "human")
    assert "vllm: --enable-lora --max-lora-rank 8 --lora-target-modules o_proj down_proj" in done.stdout
    assert "sglang: --enable-lora --max-lora-rank 3" in done.stdout
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    values = json.loads(run("export", made / "math", "-o", tmp_path / "half", "--dtype", "bfloat16", "--json").stdout)
    full = json.loads(run("export", made / "math", "-o", tmp_path / "lora", "--json").stdout)
    assert int(full["bytes"]) == 2 * int(values["bytes"])


def test_export_of_gpt2_prints_no_options_of_servers(tmp_path):
    random_adapter(family_model("gpt2"), 1).save_pretrained(tmp_path / "gpt2")
    shown = run("export", tmp_path / "gpt2", "-o", tmp_path / "lora", "--format", "human")
    assert "--enable-lora" not in shown.output
    assert "vllm" not in shown.stdout
    assert "have no LoRA for GPT-2: serve the merged model" in shown.stderr
    assert (
        not {"vllm", "sglang"}
        & json.loads(run("export", tmp_path / "gpt2", "-o", tmp_path / "lora", "--json").stdout).keys()
    )


def test_fuse_names_unknown_bases(made, tmp_path):
    random_adapter(tiny("llama", dtype=torch.bfloat16), 5).save_pretrained(tmp_path / "local")
    shown = run("fuse", tmp_path / "local", made / "code", "-o", tmp_path / "out", "--format", "human")
    assert "Warning: the base of 1 of the 2 adapters cannot be checked" in shown.stderr


@pytest.mark.parametrize(
    ("command", "sentence", "status"),
    [
        ("info nowhere/at/all", "got 'nowhere/at/all'. Check the path.", 1),
        ("info ./none", "'none' must hold an adapter of S2FT (s2ft_adapter.safetensors), got no s2ft_adapter", 1),
        ("info BASE", "must hold an adapter of S2FT (s2ft_adapter.safetensors), got the folder of a whole model.", 1),
        ("info BASE", "A model is measured by `hf-farms analyze`.", 1),
        ("merge BASE BASE -o out", "must hold an adapter of S2FT", 1),
        ("merge MATH MATH -o out", "model folder must have a config.json", 1),
        ("merge TUNED MATH -o out", "which holds the adapter already", 1),
        ("merge demo MATH -o out", "weights must have the shape that the adapter was made for", 1),
        ("merge BASE MATH -o BASE", "output must be a new folder|output must not be the model", 1),
        ("merge BASE MATH -o BASE/out", "Choose another --output.", 1),
        ("unmerge BASE MATH -o out", "must have this adapter merged into it", 1),
        ("unmerge TUNED BARE -o out", "adapter must hold the slices of its base|(--no-include-base)", 1),
        ("fuse MATH -o out", "adapters must be at least two to be fused", 2),
        ("fuse MATH CODE -o out --weight 1", "Error: --weight must be a list of 2 numbers", 2),
        ("fuse MATH CODE -o out --weight 1 --weight 0", "Error: --weight must be finite and not 0, got 0.0", 2),
        ("fuse MATH CODE -o out --weight 1 --weight -1", "positive for 'linear', got -1.0. Pass --combination cat.", 2),
        ("fuse MATH CODE -o out --combination svd", "Error: --combination must be one of linear, cat", 2),
        ("fuse MATH CODE -o out --combination ties", "Pass --density 0.5", 2),
        ("fuse MATH CODE -o out --combination ties --density 2", "Error: --density must be over 0 and up to 1", 2),
        ("fuse MATH CODE -o out --seed -1", "Error: --seed must be an integer from 0, got -1", 2),
        ("fuse ./none ./nor -o out --combination svd", "Error: --combination must be one of linear, cat", 2),
        ("fuse MATH BARE -o out --combination cat", "Save it with --include-base.", 1),
        ("export BARE -o out", "Error: --base must be given", 1),
        ("export MATH -o BASE", "Error: --output must be new, or hold an earlier export", 1),
        ("export MATH -o MATH", "output must not be the adapter", 1),
        ("export MATH -o out --dtype int8", "dtype must be auto, float32, bfloat16 or float16, got 'int8'.", 2),
        ("diff BASE BASE -o out", "model must differ from its base", 1),
        ("diff demo BASE -o out", "models must have", 1),
        ("push BASE", "must hold an adapter of S2FT", 1),
    ],
)
def test_bad_input_is_one_sentence(made, tmp_path, monkeypatch, command, sentence, status):
    monkeypatch.chdir(tmp_path)
    places = {"BASE": made / "base", "TUNED": made / "tuned", "MATH": made / "math", "CODE": made / "code"}
    places |= {"BARE": made / "bare", "BASE/out": made / "base" / "out"}
    before = contents(made / "base")
    shown = refused(*(places.get(word, word) for word in command.split()), status=status)
    assert any(each in shown for each in sentence.split("|")), shown
    assert list(tmp_path.iterdir()) == []
    assert contents(made / "base") == before


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with LocalHub() as hub, HubClient(hub, tmp_path_factory.mktemp("work")) as client:
        yield client


def test_push_and_use_from_the_hub(made, client, tmp_path):
    hub = client.hub
    hub.add("meta/tiny", contents(made / "base"))
    done = client.cli("adapter", "push", made / "math", "--dry-run")
    assert "repository: ada/math (new" in done["stdout"]
    assert "ada/math" not in hub.repos
    done = client.cli("adapter", "push", made / "math", "-q")
    assert done["stdout"] == f"{hub.endpoint}/ada/math\n", done
    files = hub.files("ada/math")
    assert {name: files[name] for name in contents(made / "math")} == contents(made / "math")
    assert files.keys() - contents(made / "math").keys() == {"README.md"}
    card = files["README.md"].decode()
    for text in ("base_model: meta/tiny", "base_model_relation: adapter"):
        assert text in card
    assert 'S2FTAdapter.from_pretrained("ada/math")' in card
    assert not (made / "math" / "README.md").exists()
    again = client.cli("adapter", "push", made / "code", "--repo-id", "ada/math", "-q")
    assert again["status"] == 0, again
    assert hub.files("ada/math")["s2ft_adapter.safetensors"] == contents(made / "code")["s2ft_adapter.safetensors"]
    done = client.cli("adapter", "merge", "meta/tiny", "ada/math", "-o", str(tmp_path / "out"), "-q")
    assert done["status"] == 0, done
    run("merge", made / "base", made / "code", "-o", tmp_path / "local")
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


def test_diff_of_a_revision_on_the_hub(made, client, tmp_path):
    hub = client.hub
    hub.add("meta/tiny", contents(made / "base"))
    hub.add("me/tuned", contents(made / "base"))
    hub.repos["me/tuned"].branches["v2"] = contents(made / "tuned")
    command = ("adapter", "diff", "meta/tiny", "me/tuned", "-o", str(tmp_path / "diff"), "-q")
    assert "model must differ from its base" in client.cli(*command)["stderr"]
    done = client.cli(*command, "--tuned-revision", "v2")
    assert done["status"] == 0, done
    assert len(S2FTAdapter.from_pretrained(tmp_path / "diff")) == 6
    for option in ("--tuned-revision", "--revision"):
        refusal = " ".join(client.cli(*command[:-2], str(tmp_path / "none"), option, "nowhere")["stderr"].split())
        assert f"does not have. Hint: Check {option}." in refusal
    assert not (tmp_path / "none").exists()


def test_a_pushed_description_is_that_of_the_weights_file(made, client, tmp_path):
    """The copy beside it may be that of another adapter, after a save that was killed."""
    client.hub.add("meta/tiny", contents(made / "base"))
    shutil.copytree(made / "math", tmp_path / "stale")
    other = json.loads((made / "code" / "s2ft_config.json").read_text()) | {"base_model": "other/base", "digest": "x"}
    (tmp_path / "stale" / "s2ft_config.json").write_text(json.dumps(other))
    done = client.cli("adapter", "push", tmp_path / "stale", "--repo-id", "ada/stale", "-q")
    assert done["status"] == 0, done
    files = client.hub.files("ada/stale")
    assert {name: files[name] for name in contents(made / "math")} == contents(made / "math")
    assert b"base_model: meta/tiny" in files["README.md"]
    assert b"other/base" not in files["README.md"]


def test_push_says_that_the_base_model_is_gone(made, client):
    client.hub.repos.clear()
    done = client.cli("adapter", "push", made / "math", "--repo-id", "ada/alone")
    assert done["status"] == 0, done
    assert "Warning: The card cannot name the license of the base model" in " ".join(done["stderr"].split())
    assert "README.md" in client.hub.files("ada/alone")


def test_push_refuses_the_base_and_other_repositories(made, client):
    client.hub.add("meta/tiny", contents(made / "base"))
    client.hub.add("ada/other", {"model.safetensors": b"x"})
    for repo, sentence in (("meta/tiny", "must not be the dense model's own"), ("ada/other", "with other files")):
        done = client.cli("adapter", "push", made / "math", "--repo-id", repo)
        assert done["status"] == 1
        assert sentence in " ".join(done["stderr"].split())
