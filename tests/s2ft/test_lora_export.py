"""LoRA exports in PEFT itself: the same model, merged, in mixed batches and fused."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from adapters import trained
from families import family_model
from peft import PeftModel
from random_adapters import merged, random_adapter, random_patch
from safetensors.torch import load_file, save_file

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft, restore
from hf_farms.errors import HfFarmsWarning, ModelError, OutputError
from hf_farms.s2ft.adapters.lora_export import export_lora
from hf_farms.s2ft.adapters.lora_files import CONFIG_NAME, WEIGHTS_NAME
from hf_farms.s2ft.adapters.lora_servers import MAX_LORA_RANKS, short_names
from hf_farms.s2ft.adapters.targets import checkpoint_names

# PEFT 0.21 uses a name that transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

INPUTS, EVERY = ("o", "down"), ("q", "k", "v", "o", "gate", "up", "down")
FAMILIES = {
    "llama": EVERY,
    "qwen2": EVERY,
    "phi3": EVERY,
    "gemma2": EVERY,
    "gpt2": EVERY,
    "opt": EVERY,
    "falcon": EVERY,
}
FAMILIES |= {"gpt_neox": EVERY, "t5": EVERY, "bert": EVERY, "gemma3": EVERY, "qwen3_moe": ("q", "v", "o")}
# Every role with the base, the default ones without it.
CASES = [pytest.param(name, roles, True, id=f"{name}-every") for name, roles in FAMILIES.items()]
CASES += [pytest.param(name, INPUTS, False, id=f"{name}-inputs") for name in ("llama", "phi3", "gpt2", "opt", "qwen2")]


def batch(name, rows=3):
    ids = torch.randint(1, 100, (rows, 7), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "decoder_input_ids": ids} if name == "t5" else {"input_ids": ids}


def logits(model, name="llama", **options):
    with torch.no_grad():
        return model(**batch(name), **options).logits


def close(found, expected, tolerance=2e-6):
    assert float((found - expected).norm() / expected.norm()) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_a_trained_model_is_served_as_a_lora(tmp_path, name, dtype):
    base, model = trained(name, roles=EVERY, dtype=dtype)
    S2FTAdapter.from_model(model).export_lora(tmp_path, base=base)
    expected = restore(model).state_dict()
    weights = PeftModel.from_pretrained(base, tmp_path).merge_and_unload().state_dict()
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight, rtol=1e-6 if dtype is torch.float32 else 0, atol=1e-7)


def test_the_rank_stays_below_a_limit_of_channels(tmp_path):
    model = family_model("phi3")
    config = S2FTConfig(budget=0.2, roles=("q", "v", "o", "down"), max_channels=26)
    with pytest.warns(HfFarmsWarning, match="max_channels must be at least"):
        apply_s2ft(model, config)
    export = S2FTAdapter.from_model(model).export_lora(tmp_path)
    # A group of heads has 24 rows of q and v in their weight, and 16 inputs of o.
    assert export.rank == 26
    assert export.max_lora_rank == 32


def config_in(folder):
    return json.loads((folder / CONFIG_NAME).read_text())


@pytest.mark.parametrize(("name", "roles", "with_base"), CASES)
def test_peft_computes_what_the_merged_model_does(tmp_path, name, roles, with_base):
    """Warnings are errors, those of missing and of unexpected keys too."""
    base = family_model(name)
    adapter = random_adapter(base, roles=roles)
    expected = merged(copy.deepcopy(base), adapter)
    before = logits(base, name)
    export = export_lora(adapter, tmp_path, base=base if with_base else None)
    assert export.rank == max(len(patch.indices) for patch in adapter.patches.values())

    model = PeftModel.from_pretrained(base, tmp_path)
    assert float((logits(expected, name) - before).norm() / before.norm()) > 1e-3
    close(logits(model, name), logits(expected, name))
    with model.disable_adapter():
        assert torch.equal(logits(model, name), before)

    weights = model.merge_and_unload().state_dict()
    unpatched = set(weights) - set(adapter.patches)
    for key, weight in expected.state_dict().items():
        if key in unpatched:
            assert torch.equal(weights[key], weight), key
        else:
            torch.testing.assert_close(weights[key], weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_differences_of_half_precision_are_stored_in_float32(tmp_path, dtype):
    base = family_model("llama").to(dtype)
    adapter = random_adapter(base, roles=EVERY)
    tensors = load_file(exported(adapter, tmp_path))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    for name, patch in adapter.patches.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        change = tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()
        assert torch.equal((base.get_parameter(name).double() + change).to(dtype), whole(base, patch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_merges_small_changes_in_half_precision_bit_for_bit(tmp_path, name, dtype):
    base = family_model(name).to(dtype)
    adapter = random_adapter(base, roles=EVERY, scale=1e-3)
    expected = merged(copy.deepcopy(base), adapter).state_dict()
    export_lora(adapter, tmp_path, base=base)
    weights = PeftModel.from_pretrained(base, tmp_path).merge_and_unload().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], weight) for key, weight in expected.items())


def whole(base, patch):
    """The whole weight after the training."""
    return base.get_parameter(patch.name).detach().clone().index_copy_(patch.dim, patch.indices, patch.values)


def exported(adapter, folder, **options):
    export_lora(adapter, folder, **options)
    return folder / WEIGHTS_NAME


def test_one_factor_is_one_hot(tmp_path):
    base = family_model("llama")
    adapter = random_adapter(base, roles=EVERY, channels=(3, 3))
    tensors = load_file(exported(adapter, tmp_path))
    for name, patch in adapter.patches.items():
        a, b = (tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
        assert (a.shape, b.shape) == ((3, patch.shape[1]), (patch.shape[0], 3))
        one_hot = a if patch.side == "inputs" else b.mT
        assert one_hot.argmax(1).tolist() == patch.indices.tolist()
        assert one_hot.sum() == one_hot.count_nonzero() == 3


def test_smaller_layers_get_zero_rows_and_the_rank_is_not_rounded_up(tmp_path):
    base = family_model("llama")
    adapter = random_adapter(base, channels=(1, 9), seed=3)
    lengths = {len(patch.indices) for patch in adapter.patches.values()}
    tensors = load_file(exported(adapter, tmp_path))
    assert len(lengths) > 1
    assert max(lengths) not in MAX_LORA_RANKS
    assert config_in(tmp_path)["r"] == config_in(tmp_path)["lora_alpha"] == max(lengths)
    for name, patch in adapter.patches.items():
        a, b = (tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
        assert a.shape[0] == b.shape[1] == max(lengths)
        assert not a[len(patch.indices) :].any()
        assert not b[:, len(patch.indices) :].any()


def test_the_config_is_what_servers_read(tmp_path):
    base = family_model("llama")
    adapter = random_adapter(base, base_model="someone/model", base_revision="abc")
    export_lora(adapter, tmp_path, base=base)
    config = config_in(tmp_path)
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/model", "abc")
    assert config["target_modules"] == ["o_proj", "down_proj"]
    assert config["init_lora_weights"] is config["inference_mode"] is True
    assert (config["bias"], config["modules_to_save"]) == ("none", None)
    assert not {"rank_pattern", "alpha_pattern"} & set(config)


@pytest.mark.parametrize(
    ("name", "task"), [("t5", "SEQ_2_SEQ_LM"), ("bert", None), ("gemma3", "CAUSAL_LM"), ("gpt2", "CAUSAL_LM")]
)
def test_the_task_is_that_of_the_base(tmp_path, name, task):
    base = family_model(name)
    export_lora(random_adapter(base), tmp_path, base=base)
    assert config_in(tmp_path)["task_type"] == task


def test_blocks_without_channels_get_zero_tensors(tmp_path):
    base = family_model("llama")
    adapter = random_adapter(base, blocks=[1], roles=("down",))
    tensors = load_file(exported(adapter, tmp_path, base=base))
    rank = config_in(tmp_path)["r"]
    assert not tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].any()
    zero = tensors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"]
    assert (zero.shape, bool(zero.any())) == ((32, rank), False)
    assert config_in(tmp_path)["target_modules"] == ["down_proj"]
    # Without the base its other blocks are not known: only this layer is a target.
    tensors = load_file(exported(adapter, tmp_path))
    assert len(tensors) == 2
    assert config_in(tmp_path)["target_modules"] == ["model.layers.1.mlp.down_proj"]


def test_short_names_do_not_reach_other_layers(tmp_path):
    """The vision tower of Gemma 3 has layers named q_proj too."""
    base = family_model("gemma3")
    export_lora(random_adapter(base, roles=("q", "v")), tmp_path, base=base)
    targets = config_in(tmp_path)["target_modules"]
    assert len(targets) == 4
    assert all(".language_model.layers." in target for target in targets)


@pytest.mark.parametrize(
    ("roles", "company"),
    [
        # No sets: their order differs between the processes that run the tests.
        (("q",), ["v_proj"]),
        (("k",), ["q_proj", "v_proj"]),
        (("v", "o"), ["q_proj"]),
        (("up",), ["gate_proj"]),
        (("gate",), []),
        (("q", "v"), []),
    ],
    ids=str,
)
def test_layers_that_sglang_stacks_have_company(tmp_path, roles, company):
    base = family_model("llama")
    adapter = random_adapter(base, roles=roles)
    export = export_lora(adapter, tmp_path, base=base)
    patched = {name.split(".")[-2] for name in adapter.patches}
    assert set(short_names(export.modules)) == patched | set(company)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    zero = {key.split(".")[-3] for key, tensor in tensors.items() if not tensor.any()}
    assert zero == set(company)
    assert export.notes == ()
    notes = export_lora(adapter, tmp_path).notes
    named = ", ".join(company)
    assert notes == (
        (f"SGLang needs zero tensors of {named} too, if the model has these layers: pass `base`.",) if named else ()
    )


def test_opt_has_no_gate(tmp_path):
    base = family_model("opt")
    export = export_lora(random_adapter(base, roles=("up", "k")), tmp_path, base=base)
    assert set(short_names(export.modules)) == {"q_proj", "k_proj", "v_proj", "fc1"}
    assert export.notes == ("SGLang has no LoRA for opt.",)
    assert export.sglang_options is None
    assert export.vllm_options in str(export)
    assert "SGLang: --enable-lora" not in str(export)


def test_mixed_batches_are_the_adapters_one_by_one(tmp_path):
    base = family_model("llama")
    adapters = {name: random_adapter(base, seed, roles=EVERY) for seed, name in enumerate(("first", "second"))}
    expected = {name: logits(merged(copy.deepcopy(base), adapter)) for name, adapter in adapters.items()}
    expected["__base__"] = logits(base)
    for name, adapter in adapters.items():
        export_lora(adapter, tmp_path / name, base=base)
    model = PeftModel.from_pretrained(base, tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    names = ["second", "__base__", "first"]
    found = logits(model, adapter_names=names)
    for row, name in enumerate(names):
        close(found[row], expected[name][row])


@pytest.mark.parametrize("roles", [INPUTS, EVERY], ids=["inputs", "every"])
def test_concatenated_adapters_of_disjoint_channels_are_their_sum(tmp_path, roles):
    base = family_model("llama")
    first = random_adapter(base, 1, roles=roles)
    second = random_adapter(base, 2, roles=roles, exclude=[first])
    both = logits(merged(merged(copy.deepcopy(base), first), second))
    for name, adapter in (("first", first), ("second", second)):
        export_lora(adapter, tmp_path / name, base=base)
    model = PeftModel.from_pretrained(base, tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "both", combination_type="cat")
    model.set_adapter("both")
    close(logits(model), both)


def test_slices_of_the_base_come_from_a_model_or_its_files(tmp_path):
    base = family_model("gpt2")
    base.save_pretrained(tmp_path / "model")
    adapter = random_adapter(base, include_base=False)
    with pytest.raises(ValueError, match=r"base must be given .*got None \(first transformer\.h\.0\..* Pass the base"):
        export_lora(adapter, tmp_path / "none")
    expected = load_file(exported(random_adapter(base), tmp_path / "whole", base=base))
    for place in (base, tmp_path / "model", str(tmp_path / "model")):
        tensors = load_file(exported(adapter, tmp_path / "lora", base=place))
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())
    assert config_in(tmp_path / "lora")["fan_in_fan_out"]


def test_names_are_those_in_memory(tmp_path):
    """The files of Gemma 3 have `language_model.model.layers` for `model.language_model.layers`."""
    base = family_model("gemma3")
    adapter = random_adapter(base)
    stored = checkpoint_names(base, adapter.patches)
    assert all(stored[name] != name for name in adapter.patches)
    patches = {stored[name]: replace(patch, name=stored[name]) for name, patch in adapter.patches.items()}
    tensors = load_file(exported(S2FTAdapter(patches=patches), tmp_path, base=base))
    expected = load_file(exported(adapter, tmp_path, base=base))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("include_base", [True, False])
def test_a_base_in_another_dtype_is_cast_as_for_the_training(tmp_path, include_base):
    stored = family_model("llama").to(torch.bfloat16)
    base = family_model("llama").to(torch.bfloat16).float()
    adapter = random_adapter(base, include_base=include_base)
    tensors = [load_file(exported(adapter, tmp_path / name, base=base)) for name, base in (("a", stored), ("b", base))]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][key]) for key, tensor in tensors[0].items())


@pytest.mark.parametrize("include_base", [True, False])
def test_another_base_is_refused(tmp_path, include_base):
    """Also where its values are not needed, as the adapter has its own."""
    base = family_model("llama")
    adapter = random_adapter(base, include_base=include_base)
    with pytest.raises(
        ModelError, match=r"base must be the model that the adapter was made of, got other values .*o_proj"
    ):
        export_lora(adapter, tmp_path, base=family_model("llama", seed=1))
    with pytest.raises(ModelError, match="must be the model that the adapter was made of"):
        export_lora(adapter, tmp_path, base=merged(copy.deepcopy(base), adapter))
    with pytest.raises(ModelError, match=r"model must have every weight of the adapter, got a GPT2LMHeadModel without"):
        export_lora(adapter, tmp_path, base=family_model("gpt2"))
    with pytest.raises(ValueError, match="base must be a model, or the folder or Hub id of one, got 3"):
        export_lora(adapter, tmp_path, base=3)
    assert list(tmp_path.iterdir()) == []


def wide(channels):
    """An adapter with so many channels in one layer."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(600, 4)
    patch = random_patch(model, "layer.weight", side="inputs", indices=range(channels), scale=1, generator=generator)
    return S2FTAdapter(patches={"layer.weight": patch})


@pytest.mark.parametrize(("channels", "largest"), [(1, 1), (2, 8), (13, 16), (256, 256), (258, 320), (512, 512)])
def test_the_flags_have_the_smallest_rank_that_fits(tmp_path, channels, largest):
    export = export_lora(wide(channels), tmp_path)
    assert (export.rank, export.max_lora_rank) == (channels, largest)
    assert export.vllm_options == f"--enable-lora --max-lora-rank {largest} --lora-target-modules layer"
    assert export.sglang_options == f"--enable-lora --max-lora-rank {channels} --lora-target-modules layer"
    assert export.vllm_options in str(export)
    assert ("S2FTConfig(max_channels=256) would fit into a rank of 256 for vLLM." in str(export)) == (channels == 258)


def test_more_channels_than_a_server_takes_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"at most 512 channels of each weight .* got 513 in layer\.weight") as error:
        export_lora(wide(513), tmp_path / "lora")
    assert error.value.hint == "Serve the merged model, or train again with S2FTConfig(max_channels=512)."
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.embed_tokens.weight"),
        ("gpt2", "transformer.wpe.weight"),
        ("gpt_neox", "gpt_neox.embed_in.weight"),
    ],
)
def test_rows_of_embeddings_are_refused(tmp_path, family, name):
    """They look like the outputs of a linear layer; a LoRA of them would not reach the embedding."""
    base = family_model(family)
    generator = torch.Generator().manual_seed(0)
    patch = random_patch(base, name, side="outputs", indices=[3, 7], scale=0.1, generator=generator)
    adapter = S2FTAdapter(patches={name: patch})
    for place in (base, None):
        with pytest.raises(ModelError, match=f"must be those of linear layers for a LoRA, got {name}"):
            export_lora(adapter, tmp_path / "lora", base=place)
    assert not (tmp_path / "lora").exists()


def test_heads_are_linear_layers(tmp_path):
    """GPT-NeoX calls its head `embed_out` in its files."""
    base, generator = family_model("gpt_neox"), torch.Generator().manual_seed(0)
    patch = random_patch(base, "lm_head.weight", side="outputs", indices=[3], scale=0.1, generator=generator)
    for module in ("lm_head", "embed_out"):
        adapter = S2FTAdapter(patches={f"{module}.weight": replace(patch, name=f"{module}.weight")})
        assert export_lora(adapter, tmp_path).modules == (module,)


def test_experts_are_refused(tmp_path):
    base = family_model("qwen3_moe")
    for place in (base, None):
        with pytest.raises(
            ModelError, match=r"must be those of linear layers for a LoRA, got model\.layers\.1\.mlp\.experts"
        ):
            export_lora(random_adapter(base, roles=("down",)), tmp_path, base=place)


def test_sizes_are_said(tmp_path):
    adapter = wide(10)
    export = export_lora(adapter, tmp_path)
    assert export.num_bytes == 10 * (600 + 4) * 4
    assert export.slice_bytes == 10 * 4 * 4 + 10 * 8
    assert export.buffer_bytes == 16 * (600 + 4) * 4
    assert export_lora(adapter, tmp_path, dtype=torch.bfloat16).num_bytes == export.num_bytes / 2
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS_NAME).values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"dtype must be None or a floating-point dtype of torch, got torch\.int8"):
        export_lora(adapter, tmp_path, dtype=torch.int8)


def test_gpt2_is_not_served_by_vllm(tmp_path):
    export = export_lora(random_adapter(family_model("gpt2")), tmp_path)
    assert export.notes == ("vLLM and SGLang have no LoRA for GPT-2: serve the merged model.",)
    assert export.vllm_options is export.sglang_options is None


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, "adapter_model.bin", "config.json"])
def test_files_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        OutputError, match=rf"folder must be new, or hold an earlier export, got .* with another {name}"
    ):
        export_lora(wide(2), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "{}"}


def test_another_lora_is_not_replaced(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    with pytest.raises(OutputError, match=f"got .* with another {WEIGHTS_NAME}"):
        export_lora(wide(2), tmp_path)


def test_links_are_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / CONFIG_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="must be a regular file or not exist, got the link"):
        export_lora(wide(2), tmp_path / "lora")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    with pytest.raises(OutputError, match="folder must be a folder or not exist, got the file"):
        export_lora(wide(2), tmp_path / "elsewhere")


def test_an_export_in_the_place_of_another(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for channels in (2, 3):
        export_lora(wide(channels), tmp_path)
        assert config_in(tmp_path)["r"] == channels
        assert load_file(tmp_path / WEIGHTS_NAME)["base_model.model.layer.lora_A.weight"].shape == (channels, 600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", CONFIG_NAME, WEIGHTS_NAME]


def test_an_export_that_stops_halfway_is_no_lora(tmp_path, monkeypatch):
    export_lora(wide(2), tmp_path)

    def fail(*args):
        raise OSError(5, "stopped")

    monkeypatch.setattr("hf_farms.s2ft.adapters.lora_files.write_text", fail)
    with pytest.raises(OutputError, match="could not be written: stopped"):
        export_lora(wide(3), tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS_NAME]
    assert export_lora(wide(3), tmp_path).rank == 3
