"""What only looks like a model is refused before anything is loaded, and no code of a model is ever run."""

import json
import os
import shutil

import pytest
import torch
from hf_farms_cli.app import app
from models import tiny
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_farms.demo import demo_model
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.opening import load_model, open_model
from hf_farms.spectra.analysis import analyze

runner = CliRunner()
COMMANDS = {
    "analyze": (),
    "prune": ("--method", "magnitude", "--evaluation", "none", "--no-baseline"),
    "eval": (),
}


@pytest.fixture
def folder(tmp_path):
    """The demo with its tokenizer, to be changed."""
    return shutil.copytree(demo_model(), tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_code(folder, *, model_type="my_custom", architecture="MyForCausalLM"):
    """Code that leaves a file when it is run."""
    ran = folder.parent / "code_was_run"
    trap = f"open({str(ran)!r}, 'w').close()\n"
    (folder / "configuration_my.py").write_text(
        f"{trap}from transformers import LlamaConfig\nclass MyConfig(LlamaConfig):\n    model_type = 'my_custom'\n"
    )
    (folder / "modeling_my.py").write_text(
        f"{trap}from transformers import LlamaForCausalLM\nclass MyForCausalLM(LlamaForCausalLM):\n    pass\n"
    )
    auto_map = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyForCausalLM"}
    edit(folder / "config.json", model_type=model_type, architectures=[architecture], auto_map=auto_map)
    return ran


def run(command, folder, *more):
    out = folder.parent / "out"
    place = ("-o", str(out)) if command == "prune" else ()
    return runner.invoke(app, [command, str(folder), *place, *COMMANDS[command], *more], input="y\ny\ny\n")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("command", COMMANDS)
def test_custom_code_is_refused_without_a_question(command, folder):
    ran = with_code(folder)
    done = run(command, folder)
    said = " ".join(done.stderr.split())
    assert done.exit_code == 1
    assert "model must be one that transformers implements, got one with custom Python code (auto_map)" in said
    assert "[y/N]" not in done.stdout + done.stderr
    assert "save_pretrained wrote" not in said
    assert not ran.exists()


@pytest.mark.parametrize("stream", [False, True, None])
def test_custom_code_is_refused_in_python_too(stream, folder):
    ran = with_code(folder)
    with pytest.raises(ModelError, match=r"model must be one that transformers implements, .* such code is never run"):
        load_model(str(folder), stream=stream)
    with pytest.raises(ModelError, match="model must be one that transformers implements"):
        open_model(folder)
    assert not ran.exists()


def test_code_of_an_unknown_class_of_a_known_family_is_refused(folder):
    ran = with_code(folder, model_type="llama")
    with pytest.raises(ModelError, match=r"architecture \(MyForCausalLM\) must be one that transformers implements"):
        load_model(str(folder))
    assert not ran.exists()


def test_a_model_that_transformers_has_is_loaded_without_its_code(folder):
    ran = with_code(folder, model_type="llama", architecture="LlamaForCausalLM")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_my.MyTokenizer", None]})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text((folder / "modeling_my.py").read_text())
    loaded = load_model(str(folder))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.tokenizer("We the people")["input_ids"]
    assert len(open_model(folder)) == 8
    assert not ran.exists()


def test_code_of_a_tokenizer_is_not_run(folder):
    ran = folder.parent / "code_was_run"
    (folder / "tokenization_my.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    (folder / "tokenizer.json").unlink()
    edit(folder / "config.json", model_type="gpt_bigcode", architectures=["GPTBigCodeForCausalLM"])
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="MyTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_my.MyTokenizer", None]},
    )
    from hf_farms.loading.tokenizer import load_tokenizer

    try:
        with pytest.raises(ModelError, match="tokenizer"):
            load_tokenizer("m", str(folder), None, needed=True)
    finally:
        assert not ran.exists()


@pytest.mark.parametrize("whole", [False, True], ids=["alone", "beside a model"])
def test_an_adapter_is_no_model(whole, folder):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "meta/base", "r": 8}
    if not whole:
        for path in [*folder.glob("*.safetensors"), folder / "config.json"]:
            path.unlink()
        save_file({"base_model.model.q.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    for load in (load_model, open_model):
        with pytest.raises(ModelError, match=r"a complete one, got a PEFT adapter \(LORA of 'meta/base'\)") as refused:
            load(str(folder))
        assert "merge_and_unload" in refused.value.hint


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "additional_chat_templates/x.jinja"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name, linked, folder, tmp_path):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe" if linked else path)
    if linked:
        path.symlink_to(tmp_path / "pipe")
    for command, options in COMMANDS.items():
        done = runner.invoke(app, [command, str(folder), *options])
        assert done.exit_code == 1
        assert f"files of a model must be regular, got the pipe '{path}'" in " ".join(done.stderr.split())


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_clone_without_git_lfs_is_told(file, folder):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
    (folder / file).write_text(pointer)
    for load in (load_model, open_model):
        with pytest.raises(ModelError, match=rf"got git-lfs pointers instead \({file}\)") as refused:
            load(str(folder))
        assert "git lfs pull" in refused.value.hint


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2", "int8", "bool"]
)
def test_a_dtype_that_nothing_can_be_computed_in_is_refused(dtype):
    with pytest.raises(ValueError, match=f"dtype must be auto, float32, bfloat16 or float16, got '{dtype}'"):
        load_model("demo", dtype=dtype)


@pytest.mark.parametrize("named", ["float8_e4m3fn", None])
@pytest.mark.parametrize("stream", [False, True])
def test_weights_for_storage_alone_are_refused(stream, named, folder):
    stored = load_file(folder / "model.safetensors")
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", dtype=named)
    with pytest.raises(ModelError, match=r"a dtype that torch can compute in, got float8_e4m3fn in '") as refused:
        load_model(str(folder), stream=stream)
    assert refused.value.hint == "Load them in another: `dtype='bfloat16'`."
    assert load_model(str(folder), stream=stream, dtype="bfloat16").source.dtype == "bfloat16"
    with pytest.raises(ModelError, match=r"must be float32, bfloat16 or float16, got torch\.float8_e4m3fn in model\."):
        analyze(folder)


def pickled(folder, model, **options):
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)
    return folder


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_reads_a_pickle_without_consent(command, tmp_path):
    folder = pickled(tmp_path / "m", tiny("llama"))
    more = ("--metrics", "sparsity") if command == "eval" else ()
    done = run(command, folder, *more)
    assert done.exit_code == 1
    assert "weights must be safetensors, got pickled ones" in " ".join(done.stderr.split())
    done = run(command, folder, "--allow-pickle", *more)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("stream", [False, True, None])
def test_pickles_need_consent_in_python_too(stream, tmp_path):
    model = tiny("llama")
    folder = pickled(tmp_path / "m", model)
    with pytest.raises(ModelError, match="weights must be safetensors, got pickled ones"):
        load_model(str(folder), tokenizer=False, stream=stream)
    layer = load_model(str(folder), tokenizer=False, stream=stream, allow_pickle=True).source.open(1).layers[0]
    assert torch.equal(layer.read(), model.model.layers[1].self_attn.q_proj.weight)


@pytest.mark.parametrize("stream", [False, True])
def test_pickles_of_the_first_format_are_read(stream, tmp_path):
    """As torch wrote them before 1.6: no zip archive, and not to be mapped."""
    model = tiny("llama")
    folder = pickled(tmp_path / "m", model, _use_new_zipfile_serialization=False)
    expected = model.model.layers[1].self_attn.q_proj.weight
    loaded = load_model(str(folder), tokenizer=False, stream=stream, allow_pickle=True)
    assert torch.equal(loaded.source.open(1).layers[0].read(), expected)
    assert torch.equal(open_model(folder, allow_pickle=True).open(1).layers[0].read(), expected)


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "content", [{"weight": Evil()}, {"model": {"weight": 1}}, [torch.ones(1)]], ids=["code", "nested", "list"]
)
def test_pickles_of_something_else_are_refused_and_not_run(content, zipped, tmp_path, capsys):
    folder = pickled(tmp_path / "m", tiny("llama"))
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    for load in (lambda name: load_model(name, allow_pickle=True), lambda name: open_model(name, allow_pickle=True)):
        with pytest.raises(ModelError, match=r"must contain only tensors, got .* in pytorch_model\.bin"):
            load(str(folder))
    assert capsys.readouterr().out == ""


def test_safetensors_are_read_where_there_are_both(tmp_path):
    model = tiny("llama")
    folder = pickled(tmp_path / "m", tiny("llama", seed=1))
    model.save_pretrained(folder)
    layer = load_model(str(folder), tokenizer=False, allow_pickle=True).source.open(1).layers[0]
    assert torch.equal(layer.read(), model.model.layers[1].self_attn.q_proj.weight)
    assert torch.equal(open_model(folder, allow_pickle=True).open(1).layers[0].read(), layer.read())


def test_a_single_file_comes_before_shards_as_in_transformers(tmp_path):
    one, other = tiny("llama"), tiny("llama", seed=1)
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = {path: path.read_bytes() for path in tmp_path.iterdir()}
    one.save_pretrained(tmp_path)
    for path, content in shards.items():
        if not path.exists():
            path.write_bytes(content)
    expected = one.model.layers[1].self_attn.q_proj.weight
    for stream in (False, True):
        loaded = load_model(str(tmp_path), tokenizer=False, stream=stream)
        assert torch.equal(loaded.source.open(1).layers[0].read(), expected)
        assert [path.name for path in loaded.weights] == ["model.safetensors"]
    assert torch.equal(open_model(tmp_path).open(1).layers[0].read(), expected)


def test_a_tokenizer_with_code_that_nobody_needs_is_told(folder, monkeypatch):
    import transformers

    def refused(*_, **options):
        assert options["trust_remote_code"] is False
        raise ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refused)
    with pytest.warns(HfFarmsWarning, match="tokenizer must be one that transformers implements"):
        assert load_model(str(folder), tokenizer=None).tokenizer is None
    with pytest.raises(ModelError, match="tokenizer must be one that transformers implements"):
        load_model(str(folder))
