"""Meta's own layout: a checkpoint made by hand from a tiny model, in folders and on a Hub on this machine."""

import json
import os
import pickle

import pytest
import torch
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hf_farms.demo import demo_text
from hf_farms.errors import HfFarmsError, HfFarmsWarning, ModelError
from hf_farms.loading.meta_conversion import _halves_from_pairs
from hf_farms.loading.meta_layout import find_meta_checkpoint
from hf_farms.loading.names import ModelRef
from hf_farms.loading.opening import load_model, open_model

# dim 32: int(8 * 32 / 3) = 85, times 1.3 is 110, rounded up to a multiple of 16.
SIZES = {"intermediate_size": 112, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
PARAMS = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "ffn_dim_multiplier": 1.3}
PARAMS |= {"norm_eps": 1e-5, "vocab_size": -1}
SOURCES = ["consolidated.00.pth", "consolidated.01.pth", "params.json"]
# Which dimension Meta's parallel layers split: rows of what is multiplied first, columns of what is multiplied last.
SPLIT = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}


def pairs_from_halves(weight, head_dim):
    """Row by row: row i of the first half of a head and row i of the second become neighbors."""
    rows = []
    for head in range(len(weight) // head_dim):
        for i in range(head_dim // 2):
            rows += [weight[head * head_dim + i], weight[head * head_dim + head_dim // 2 + i]]
    return torch.stack(rows)


def original_state(model):
    """The weights of a transformers Llama under Meta's names."""
    state = {
        "tok_embeddings.weight": model.model.embed_tokens.weight,
        "norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
        "rope.freqs": torch.zeros(4),
    }
    for i, layer in enumerate(model.model.layers):
        state |= {
            f"layers.{i}.attention.wq.weight": pairs_from_halves(layer.self_attn.q_proj.weight, model.config.head_dim),
            f"layers.{i}.attention.wk.weight": pairs_from_halves(layer.self_attn.k_proj.weight, model.config.head_dim),
            f"layers.{i}.attention.wv.weight": layer.self_attn.v_proj.weight,
            f"layers.{i}.attention.wo.weight": layer.self_attn.o_proj.weight,
            f"layers.{i}.feed_forward.w1.weight": layer.mlp.gate_proj.weight,
            f"layers.{i}.feed_forward.w2.weight": layer.mlp.down_proj.weight,
            f"layers.{i}.feed_forward.w3.weight": layer.mlp.up_proj.weight,
            f"layers.{i}.attention_norm.weight": layer.input_layernorm.weight,
            f"layers.{i}.ffn_norm.weight": layer.post_attention_layernorm.weight,
        }
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def write(folder, model, *, shards=1, embeddings=1, **params):
    """Write a model in Meta's layout; `embeddings` is the dimension that they are split in."""
    folder.mkdir(exist_ok=True)
    split = SPLIT | {"tok_embeddings": embeddings}
    for number in range(shards):
        part = {}
        for name, tensor in original_state(model).items():
            dim = split.get(name.split(".")[-2])
            part[name] = tensor if dim is None else tensor.chunk(shards, dim)[number].clone()
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(PARAMS | params), encoding="utf-8")
    return folder


@pytest.fixture
def dense():
    return tiny("llama", **SIZES)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


def converted(folder):
    with pytest.warns(HfFarmsWarning, match="has Meta's own layout, without a config.json: it was converted"):
        return load_model(str(folder), tokenizer=False, allow_pickle=True)


@pytest.mark.parametrize(
    ("shards", "embeddings", "kv_heads", "theta"),
    [(1, 1, 2, None), (2, 1, 2, None), (2, 0, 2, 500_000.0), (2, 1, 4, 1_000_000.0), (4, 1, 4, None)],
)
def test_a_converted_model_computes_what_the_original_did(shards, embeddings, kv_heads, theta, ids, tmp_path):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}} if theta else {}
    dense = tiny("llama", **SIZES, num_key_value_heads=kv_heads, **rope)
    folder = write(
        tmp_path / "m",
        dense,
        shards=shards,
        embeddings=embeddings,
        n_kv_heads=kv_heads,
        rope_theta=theta,
        vocab_size=100,
    )
    loaded = converted(folder)
    with torch.no_grad():
        assert (loaded.model(ids[0]).logits - dense(ids[0]).logits).abs().max() <= 1e-6
    assert loaded.model.dtype == torch.float32
    assert loaded.notes == (f"{str(folder)!r} has Meta's own layout, without a config.json: it was converted.",)


def test_neighbors_rotated_as_complex_numbers_give_the_scores_of_halves():
    """Independent of the order of rows above: attention scores by Meta's definition of the rotation."""
    dense = tiny("llama", **SIZES, num_key_value_heads=4)
    wq, wk = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).unbind()
    for weight, name in ((wq, "q_proj"), (wk, "k_proj")):
        getattr(dense.model.layers[0].self_attn, name).weight.data = _halves_from_pairs(weight, 8)
    x = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(1))
    angles = torch.outer(torch.arange(10.0), 10_000.0 ** -(torch.arange(0, 8, 2) / 8))
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

    def rotated(weight):
        pairs = torch.view_as_complex((x @ weight.T).view(1, 10, 4, 4, 2))
        return torch.view_as_real(pairs * turn).flatten(3).transpose(1, 2)

    attention = dense.model.layers[0].self_attn
    q, k = (layer(x).view(1, 10, 4, 8).transpose(1, 2) for layer in (attention.q_proj, attention.k_proj))
    q, k = apply_rotary_pos_emb(q, k, *dense.model.rotary_emb(x, torch.arange(10)[None]))
    torch.testing.assert_close(rotated(wq) @ rotated(wk).mT, q @ k.mT, rtol=1e-5, atol=1e-4)


def test_what_is_analyzed_without_the_model_is_the_same(dense, tmp_path):
    folder = write(tmp_path / "m", dense, shards=2)
    with pytest.warns(HfFarmsWarning, match="it was converted"):
        reader = open_model(folder, allow_pickle=True)
    for index, layer in enumerate(dense.model.layers):
        found = {view.name: view.read() for view in reader.open(index).layers}
        assert torch.equal(found[f"model.layers.{index}.self_attn.q_proj"], layer.self_attn.q_proj.weight)
        assert torch.equal(found[f"model.layers.{index}.mlp.down_proj"], layer.mlp.down_proj.weight)


def test_a_model_is_converted_once_and_again_when_it_changed(dense, tmp_path):
    folder = write(tmp_path / "m", dense)
    config = next(iter(converted(folder).weights)).parent / "config.json"
    before = config.stat().st_mtime_ns
    assert next(iter(converted(folder).weights)).parent == config.parent
    assert config.stat().st_mtime_ns == before
    other = tiny("llama", **SIZES, seed=1)
    again = converted(write(folder, other))
    assert torch.equal(again.model.lm_head.weight, other.lm_head.weight)
    assert not [*(tmp_path / "assets").rglob("*.partial")]


def test_half_precision_stays(tmp_path):
    loaded = converted(write(tmp_path / "m", tiny("llama", **SIZES, dtype=torch.bfloat16)))
    assert loaded.model.dtype == torch.bfloat16


def test_pickled_files_need_consent(dense, tmp_path):
    folder = write(tmp_path / "m", dense)
    with pytest.raises(ModelError, match=r"got pickled ones \(consolidated.00.pth\) in Meta's own layout") as raised:
        open_model(folder)
    assert "`allow_pickle=True`" in raised.value.hint
    assert not (tmp_path / "assets").exists()


class Code:
    def __reduce__(self):
        return (os.system, ("touch ran",))


def spoil(folder, dense, how):
    if how == "code":
        torch.save({"a": Code()}, folder / "consolidated.01.pth")
    elif how == "raw code":
        (folder / "consolidated.01.pth").write_bytes(pickle.dumps(Code(), protocol=2))
    elif how == "truncated":
        path = folder / "consolidated.01.pth"
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "gap":
        (folder / "consolidated.00.pth").unlink()
    elif how == "last missing":
        (folder / "consolidated.01.pth").unlink()
    elif how == "extra":
        state = torch.load(folder / "consolidated.01.pth", weights_only=True)
        torch.save(state | {"layers.0.attention.wq.bias": torch.zeros(4)}, folder / "consolidated.01.pth")
    elif how == "a list":
        torch.save([1, 2], folder / "consolidated.01.pth")
    elif how == "other sizes":
        write(folder, dense, shards=2, multiple_of=256)
    elif how == "other vocabulary":
        write(folder, dense, shards=2, vocab_size=50)
    elif how == "no JSON":
        (folder / "params.json").write_text("{", encoding="utf-8")
    elif how == "no dim":
        (folder / "params.json").write_text(json.dumps({**PARAMS, "dim": None}), encoding="utf-8")
    elif how.startswith("value "):
        key, value = json.loads(how.removeprefix("value "))
        (folder / "params.json").write_text(json.dumps({**PARAMS, key: value}), encoding="utf-8")
    elif how == "experts":
        write(folder, dense, shards=2, moe={"num_experts": 8})
    elif how == "scaled rope":
        write(folder, dense, shards=2, use_scaled_rope=True)
    elif how == "mistral":
        (folder / "consolidated.safetensors").write_bytes(b"")
    elif how == "a folder above":
        (folder.parent / "config.json").write_text("{}", encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*it was converted")
@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("code", "must hold tensors and nothing else, got 'consolidated.01.pth' with other objects or code"),
        ("raw code", "must hold tensors and nothing else, got 'consolidated.01.pth'"),
        ("truncated", "must be readable, got a damaged 'consolidated.01.pth'"),
        ("gap", r"numbered without gaps, got .* without consolidated.00.pth"),
        (
            "last missing",
            r"shards must add up to 'model.embed_tokens.weight' of shape \(100, 32\), got 1 of",
        ),
        ("extra", "shard 1 must hold the tensors of a Llama, got one also with 'layers.0.attention.wq.bias'"),
        ("a list", "must be tensors by name, got something else in 'consolidated.01.pth'"),
        ("other sizes", r"shards must add up to 'model.layers.0.mlp.gate_proj.weight' of shape \(256, 32\)"),
        ("other vocabulary", "got 100 tokens where params.json says 50"),
        ("no JSON", "params.json must be JSON, got a damaged one"),
        ("no dim", "must have the numbers dim, n_layers, n_heads, norm_eps, got one without dim"),
        (
            'value ["n_layers", 1000000000]',
            "n_layers of params.json must be a whole number from 1 to 16,384, got 1000000000",
        ),
        ('value ["dim", 32.5]', "dim of params.json must be a whole number from 1 to 1,048,576, got 32.5"),
        ('value ["multiple_of", "16"]', "multiple_of of params.json must be a whole number from 1 to .*, got '16'"),
        ('value ["n_kv_heads", 0]', "n_kv_heads of params.json must be a whole number from 1 to 16,384, got 0"),
        (
            'value ["ffn_dim_multiplier", 1e9]',
            "ffn_dim_multiplier of params.json must be a number from 0.01 to 100.0, got 1000000000",
        ),
        ('value ["norm_eps", 1.5]', "norm_eps of params.json must be a number from 0.0 to 1.0, got 1.5"),
        ('value ["rope_theta", [1]]', r"rope_theta of params.json must be a number .*, got \[1\]"),
        ("experts", "must be that of Llama, Llama 2 or Llama 3, got one with moe"),
        ("scaled rope", "got one with use_scaled_rope"),
        ("mistral", "must have the layout of transformers or of Meta's Llama, got Mistral's own"),
        ("a folder above", "model folder must have a config.json"),
    ],
)
def test_what_cannot_be_converted_is_named(how, answer, dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "m", dense, shards=2)
    spoil(folder, dense, how)
    with pytest.raises(HfFarmsError, match=answer):
        load_model(str(folder), tokenizer=False, allow_pickle=True)
    assert not [*(tmp_path / "assets").rglob("model/config.json")]
    assert not (tmp_path / "ran").exists()


def test_other_folders_are_not_taken_for_it(dense, tmp_path):
    dense.save_pretrained(tmp_path)
    (tmp_path / "params.json").write_text("{}", encoding="utf-8")
    assert find_meta_checkpoint(ModelRef.parse(tmp_path)) is None
    assert find_meta_checkpoint(ModelRef.parse("demo")) is None


def train_tokenizer(folder):
    """A sentencepiece model with Llama's settings."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = folder.parent / "text.txt"
    text.write_text(demo_text("select").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    options = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity"}
    options |= {"remove_extra_whitespaces": False, "vocab_size": 400, "minloglevel": 9, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "tokenizer"), **options)
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("above", [False, True])
def test_the_tokenizer_gives_the_ids_of_sentencepiece(above, tmp_path):
    folder = write(tmp_path / "m", tiny("llama", **SIZES, vocab_size=400))
    expected = train_tokenizer(folder)
    if above:
        (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    converted(folder)  # as analyze does it, without one
    with pytest.warns(HfFarmsWarning, match="it was converted"):
        tokenizer = load_model(str(folder), allow_pickle=True).tokenizer
    for text in ("My fellow citizens, in 1861 we", "two  spaces\nand a line", "naïve – 中 🙂"):
        assert tokenizer(text).input_ids == [1, *expected.encode(text)]
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_a_tokenizer_that_is_missing_or_of_another_kind_is_named(dense, tmp_path):
    folder = write(tmp_path / "m", dense)
    with pytest.warns(HfFarmsWarning, match="converted"), pytest.raises(ModelError, match="must have a tokenizer"):
        load_model(str(folder), allow_pickle=True)
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n", encoding="utf-8")
    with (
        pytest.warns(HfFarmsWarning, match="converted"),
        pytest.raises(ModelError, match="must be a sentencepiece model, got another format"),
    ):
        load_model(str(folder), allow_pickle=True)


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as server:
        yield server


@pytest.fixture(autouse=True)
def asked_for(request):
    """Requests of other tests are forgotten."""
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").requests.clear()


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with HubClient(hub, tmp_path_factory.mktemp("work")) as client:
        yield client


@pytest.fixture(scope="module")
def without_a_hub(hub, tmp_path_factory):
    """The user of an endpoint that does not answer."""
    with HubClient(hub, tmp_path_factory.mktemp("dead"), HF_ENDPOINT="http://127.0.0.1:9") as client:
        yield client


def run(client, line):
    """Status, stdout and stderr of a command."""
    done = client.cli(*line.split())
    return done["status"], done["stdout"], " ".join(done["stderr"].split())


def downloads(hub, name):
    return [request.partition("/resolve/")[2] for request in hub.requests if request.startswith(f"GET /{name}/")]


def test_on_the_hub_the_repository_beside_it_is_used(hub, client, dense, tmp_path):
    hub.add("meta/m", contents(write(tmp_path / "original", dense)))
    hub.add("meta/m-hf", contents(save(dense, tmp_path / "dense")))
    status, out, err = run(client, "analyze meta/m --json")
    assert status == 0, err
    assert json.loads(out)["model"] == "meta/m"
    assert "without a config.json: 'meta/m-hf' was loaded in its place" in err
    assert not [request for request in hub.requests if ".pth" in request]
    hub.requests.clear()
    # The same user, later and without a network.
    (tmp_path / "home").symlink_to(client.log.parent / "home")
    with HubClient(hub, tmp_path, HF_HUB_OFFLINE="1") as offline:
        _, again, err = run(offline, "analyze meta/m --json")
    assert json.loads(again)["blocks"] == json.loads(out)["blocks"], err
    assert hub.requests == []


def test_the_users_own_line(hub, client, dense, tmp_path):
    license = {"README.md": b"---\nlicense: llama2\n---\n", "LICENSE.txt": b"terms", "USE_POLICY.md": b"policy"}
    hub.add("meta/Llama-2", contents(write(tmp_path / "original", dense)) | license)
    hub.add("meta/Llama-2-hf", contents(save(dense, tmp_path / "dense")))
    status, _, err = run(client, "prune meta/Llama-2 --push --method magnitude --evaluation none")
    assert status == 0, err
    assert "'meta/Llama-2-hf' was loaded in its place" in err
    pushed = hub.files("ada/Llama-2-farms-magnitude-50")
    assert b"base_model: meta/Llama-2\n" in pushed["README.md"]
    assert b"license: llama2\n" in pushed["README.md"]
    assert (pushed["LICENSE.txt"], pushed["USE_POLICY.md"]) == (b"terms", b"policy")
    assert b"LLAMA 2 Community License" in pushed["NOTICE"]


def test_on_the_hub_without_one_consent_is_asked_for_and_weights_are_converted(hub, client, dense, tmp_path):
    hub.add("meta/alone", contents(write(tmp_path / "original", dense, shards=2)))
    status, _, err = run(client, "analyze meta/alone")
    assert status == 1
    assert "got pickled ones (consolidated.00.pth) in Meta's own layout in 'meta/alone'" in err
    assert ", and there is no 'meta/alone-hf' on the Hub" in err
    assert "Hint: Convert them with --allow-pickle" in err
    assert downloads(hub, "meta/alone") == []
    expected = run(client, f"analyze {save(dense, tmp_path / 'dense')} --json")
    found, again = (run(client, "analyze meta/alone --allow-pickle --json") for _ in range(2))
    assert found[0] == 0, found
    assert "it was converted" in found[2]
    assert json.loads(found[1])["blocks"] == json.loads(again[1])["blocks"] == json.loads(expected[1])["blocks"]
    assert sorted(path.partition("/")[2] for path in downloads(hub, "meta/alone")) == SOURCES


def save(model, folder):
    model.save_pretrained(folder)
    return folder


def test_a_gated_repository_beside_it_is_named_with_its_page(hub, client, dense, tmp_path):
    hub.add("meta/closed", contents(write(tmp_path / "original", dense)))
    hub.add("meta/closed-hf", contents(save(dense, tmp_path / "dense")), gated=True)
    refused, converted_ = run(client, "analyze meta/closed"), run(client, "analyze meta/closed --allow-pickle")
    assert refused[0] == 1
    assert f"was not granted: ask for it at {hub.endpoint}/meta/closed-hf" in refused[2]
    assert converted_[0] == 0, converted_


def test_a_revision_is_of_the_original_and_not_of_the_repository_beside_it(hub, client, dense, tmp_path):
    hub.add("meta/old", contents(write(tmp_path / "original", dense)))
    hub.add("meta/old-hf", contents(save(dense, tmp_path / "dense")))
    named = f"analyze meta/old --revision {hub.repos['meta/old'].sha}"
    refused, converted_ = run(client, named), run(client, f"{named} --allow-pickle")
    assert refused[0] == 1
    assert "in Meta's own layout in 'meta/old'." in refused[2]
    assert converted_[0] == 0, converted_


def test_both_layouts_in_one_repository(hub, client, dense, tmp_path):
    """As meta-llama/Meta-Llama-3-8B has them: nothing of the second is fetched, and nothing is said."""
    files = contents(save(dense, tmp_path / "dense"))
    files |= {f"original/{name}": data for name, data in contents(write(tmp_path / "original", dense)).items()}
    hub.add("meta/both", files)
    status, _, err = run(client, "analyze meta/both -q")
    assert (status, err) == (0, "")
    assert not [request for request in hub.requests if "original" in request]


def test_a_dead_endpoint_is_named_at_once(without_a_hub):
    status, _, err = run(without_a_hub, "analyze meta/m")
    assert status == 1
    assert "the Hub at http://127.0.0.1:9 could not be reached" in err
    assert "Check the network and HF_ENDPOINT, then run the same command again." in err


def test_a_mistyped_folder_is_not_blamed_on_the_network_alone(without_a_hub):
    (without_a_hub.log.parent / "out").mkdir()
    status, _, err = run(without_a_hub, "analyze out/nope")
    assert status == 1
    assert "Check the network and HF_ENDPOINT, and the path if 'out/nope' should be a folder" in err


def test_a_converted_checkpoint_is_one_of_transformers(dense, tmp_path):
    folder = converted(write(tmp_path / "m", dense)).weights[0].parent
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.max_position_embeddings == 4096
    assert model.config.num_key_value_heads == 2
