"""What of a folder is pushed: regular files that belong to a model, and nothing else."""

import json
import os

import pytest
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny

from hf_farms.hub import read_contents
from hf_farms.hub.contents import MODEL_FILE, Contents
from hf_farms.hub.staging import staged_files

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
MODEL = [
    *("config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "tokenizer.model.v3"),
    *("spiece.model", "sentencepiece.bpe.model", "source.spm", "tekken.json", "qwen.tiktoken", "chat_template.jinja"),
    *("additional_chat_templates/tool_use.jinja", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml"),
    *("hf_farms_report.json", "farms_lr.jsonl", "s2ft_config.json", "s2ft_adapter.safetensors", "figures/blocks.png"),
    *(
        "figures/blocks-dark.png",
        "LICENSE",
        "LICENCE.txt",
        "license.md",
        "NOTICE",
        "USE_POLICY.md",
        "LICENSE-MODEL",
    ),
    *("COPYING", "all_results.json", "trainer_state.json", "1_Pooling/config.json", "modules.json", ".gitattributes"),
]
OTHERS = [
    *(".netrc", ".env", ".env.local", "id_rsa", "id_ed25519.pub", "key.pem", "credentials.json", "token", "token.txt"),
    *("secrets.yaml", "notes.txt", "train.csv", "train.jsonl", "aws_config.json", "train.py", "core.1234", "run.log"),
    *("pytorch_model.bin", "training_args.bin", "optimizer.pt", "optimizer.safetensors", ".ssh/config.json"),
    *("checkpoint-5/config.json", "checkpoint-5/model.safetensors", "runs/nov/events.out.tfevents.1", "wandb/x.json"),
    *("sub/.netrc", "sub/README.md", "sub/LICENSE", "figures/notes.txt", "figures/.png", "LICENSE.d/key", "nohup.out"),
    *(".git/config", "README.md.tmp", "README.md~", "config.json.bak", ".model.safetensors", "recipe.yaml.swp"),
]


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fill(folder, names, data=b"{}"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_what_belongs_to_a_model(tmp_path):
    fill(tmp_path, (*MODEL, *OTHERS))
    found = read_contents(tmp_path)
    assert sorted(found.files) == sorted(MODEL)
    assert sorted(found.others) == sorted(OTHERS)
    assert found.left_out(limit=3).endswith(f"and {len({name.split('/')[0] for name in OTHERS}) - 3} more")


def test_files_of_the_tokenizers_of_transformers_belong_to_models():
    import transformers

    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    classes = (
        "BertTokenizer",
        "GPT2Tokenizer",
        "T5Tokenizer",
        "XLMRobertaTokenizer",
        "MarianTokenizer",
        "FSMTTokenizer",
    )
    classes += ("SpeechT5Tokenizer", "LukeTokenizer", "XLMTokenizer", "GPTNeoXJapaneseTokenizer", "ByT5Tokenizer")
    names = {name for found in classes for name in getattr(transformers, found).vocab_files_names.values()}
    assert {"vocab.txt", "merges.txt", "spiece.model", "source.spm", "vocab-src.json"} <= names
    assert [name for name in sorted(names) if not MODEL_FILE.fullmatch(name)] == []


def test_code_that_a_config_names_and_images_that_the_card_shows(tmp_path):
    fill(tmp_path, ["train.py", "cache.py", "modeling_x.py", "layers.py", "assets/plot.png", "assets/other.png"])
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.X", "AutoConfig": "a/b--cache.C"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": [null, 3]}}')
    (tmp_path / "processor_config.json").write_text("[")
    (tmp_path / "modeling_x.py").write_text("import os\nfrom .layers import Layer\nfrom . import modeling_x\n")
    (tmp_path / "README.md").write_text("![plot](assets/plot.png)")
    found = set(read_contents(tmp_path).files)
    assert found == {
        *("config.json", "tokenizer_config.json", "processor_config.json", "README.md"),
        *("modeling_x.py", "layers.py", "assets/plot.png"),
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    with LocalHub() as hub, HubClient(hub, folder) as client:
        yield client


def strange(folder, private):
    """Links and special files under names of a model, and others; a walk through a link would not end."""
    for name in ("LICENSE", "tokenizer.json", "notes", "generation_config.json", "adapter_model.safetensors"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(private / "token")
    (folder / "vocab.txt").symlink_to("LICENSE")
    (folder / "merges.txt").symlink_to("/dev/zero")
    (folder / "NOTICE").symlink_to("nothing")
    (folder / "figures").symlink_to(private)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "vocab.json")
    os.mkfifo(folder / "README.md")
    os.mkfifo(folder / "recipe.yaml")


def test_links_and_special_files_are_never_sent(client, folder, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    fill(private, ["token", "a.png"], b"geheim")
    kept = set(contents(folder)) - {"generation_config.json"}
    strange(folder, private)
    fill(folder, [".netrc", "id_rsa"], b"geheim")
    client.hub.blobs.clear()
    done = client.cli("push", folder, "--repo-id", "strange")
    assert done["status"] == 0, done
    sent = client.hub.files("ada/strange")
    assert set(sent) == kept
    assert not any(b"geheim" in data for data in (*sent.values(), *client.hub.blobs.values()))
    assert "Warning: Only files of the model are pushed. Left out of" in done["stderr"]
    assert "LICENSE (a link to another path)" in done["stderr"]
    plan = client.cli("push", folder, "--repo-id", "strange", "--dry-run")["stdout"]
    assert "left out: " in plan
    assert "(a broken link)" in plan + done["stderr"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_a_model_needs_must_be_there_itself(client, folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    client.hub.repos.clear()
    done = client.cli("push", folder, "--repo-id", "linked")
    assert done["status"] == 1
    assert f"Error: {name} must be a file of" in done["stderr"]
    assert "to be pushed, got a link to another path." in done["stderr"]
    assert "ada/linked" not in client.hub.repos
    assert client("push", folder, "linked")["error"] == "OutputError"


def test_a_shard_that_is_a_link_is_not_pushed_as_if_it_were_there(client, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model", max_shard_size="60KB")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    client.hub.repos.clear()
    said = client("push", tmp_path / "model", "linked")
    assert said["error"] == "OutputError"
    assert said["message"].startswith(f"{shard.name} must be a file of")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.rename(tmp_path / "index.json")
    index.symlink_to(tmp_path / "index.json")
    assert "to be pushed, got a link" in client("push", tmp_path / "model", "linked")["message"]
    assert client.hub.repos == {}


def test_a_folder_of_the_hubs_cache_is_pushed_whole(client, folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for number, (name, data) in enumerate(contents(folder).items()):
        blob = tmp_path / "models--a--b" / "blobs" / f"{number:040x}"
        blob.write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    assert "error" not in client("push", snapshot, "copy")
    assert client.hub.files("ada/copy") == contents(folder)


def test_a_password_of_the_endpoint_is_not_shown(folder, tmp_path):
    with LocalHub() as hub:
        place = hub.endpoint.removeprefix("http://")
        secret = {"HF_ENDPOINT": f"http://ada:ge%40heim@{place}", "HF_DEBUG": "1"}
        with HubClient(hub, tmp_path, **secret) as client:
            said = [
                client.cli("push", folder, "--repo-id", "m"),
                client.cli("push", folder, "--repo-id", "m", "--json"),
                client.cli("push", folder, "--repo-id", "none/of-mine", "--debug"),
                client.cli("push", folder, "--repo-id", f"http://ada:ge%40heim@{place}/m"),
                client.cli("prune", "nobody/nothing"),
                client.cli("prune", "demo", "--format", f"http://ada:ge%40heim@{place}"),
                client.cli("env"),
                client("push", folder, "m"),
            ]
            hub.fail_next("/api/", status=500, times=9)
            said.append(client.cli("push", folder, "--repo-id", "m"))
            hub.faults.clear()
            hub.fault("whoami", page=True, status=502, times=9)
            said.append(client.cli("push", folder, "--repo-id", "m"))
        with HubClient(hub, tmp_path, **{"HF_ENDPOINT": "http://ada:ge%40heim@127.0.0.1:9"}) as client:
            said.append(client.cli("push", folder, "--repo-id", "m"))
            said.append(client.cli("eval", "a/b", "--metrics", "sparsity"))
    assert "could not be reached" in said[-2]["stderr"]
    text = json.dumps(said)
    assert f"http://{place}" in text
    for secret in ("ge%40heim", "ge@heim", "heim@", "hf_good"):
        assert secret not in text, text[max(0, text.index(secret) - 300) :][:600]


@pytest.mark.parametrize("text", ['{{"output_dir": "{home}/secret"', '{{"a": {deep}, "output_dir": "{home}/secret"}}'])
def test_a_config_that_cannot_be_read_is_cleaned_as_text(tmp_path, monkeypatch, text):
    """Damaged, or nested too deeply."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    deep = "[" * 600 + "]" * 600
    (tmp_path / "config.json").write_text(text.format(home=tmp_path / "home", deep=deep))
    with staged_files(Contents({"config.json": tmp_path / "config.json"}, {})) as (folder, changed):
        assert changed == ("config.json",)
        pushed = (folder / "config.json").read_text()
    assert str(tmp_path) not in pushed
    assert "secret" in pushed
