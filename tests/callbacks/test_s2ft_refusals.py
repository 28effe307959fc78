"""What S2FT does not work with is refused before the first step, with the way out."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from families import family_model
from models import tiny
from s2ft_models import EARLY, INDEXED, PERMUTED, plain, trainer
from torch.distributed.fsdp import fully_shard
from trainers import Tokens, arguments, same, weights
from transformers import Trainer

from hf_farms import FarmsLRCallback, KeepZerosCallback, S2FTCallback, S2FTConfig, apply_s2ft
from hf_farms.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.is_gradient_checkpointing. is deprecated")


def refuse(folder, error, why, **options):
    """Adding it early is enough to be refused."""
    with pytest.raises(error, match=why):
        trainer(folder, S2FTCallback(INDEXED), **options)


@pytest.mark.parametrize("optim", ["galore_adamw_layerwise", "apollo_adamw_layerwise", "lomo", "adalomo"])
def test_optimizers_that_step_in_the_backward_pass(optim, tmp_path):
    refuse(tmp_path, ValueError, f"got '{optim}', which updates weights during .* Set optim=.adamw_torch", optim=optim)


def test_schedule_free_optimizers(tmp_path):
    why = "optim must change weights in its step only .* got 'schedule_free_adamw'.* Set optim=.adamw_torch"
    refuse(tmp_path, ValueError, why, optim="schedule_free_adamw")


@EARLY
def test_fsdp1(early, tmp_path, monkeypatch):
    """As an argument, and as `accelerate launch` says it, whose default it is."""
    why = r"weights must be whole or sharded by FSDP2 for S2FTCallback, got FSDP1\. Set fsdp_version: 2\."
    args = arguments(tmp_path)
    callback = S2FTCallback(INDEXED)
    event = callback.on_init_end if early else callback.on_train_begin
    given = {"model": tiny("llama"), "optimizer": None}
    args.fsdp = "full_shard"
    with pytest.raises(ValueError, match=why):
        event(args, transformers.TrainerState(), transformers.TrainerControl(), **given)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=why):
        event(arguments(tmp_path), transformers.TrainerState(), transformers.TrainerControl(), **given)


def test_layout_permuted_under_fsdp2(tmp_path, monkeypatch):
    """As `accelerate launch` says it, and as the Trainer's own argument."""
    why = r"layout must be 'indexed' for S2FTCallback under FSDP2, got 'permuted', whose .* Pass S2FTConfig\(lay"
    args, given = arguments(tmp_path), (transformers.TrainerState(), transformers.TrainerControl())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match=why):
        S2FTCallback(PERMUTED).on_init_end(args, *given, model=tiny("llama"))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.delenv("FSDP_VERSION")
    args.fsdp, args.fsdp_plugin_args = True, {"fsdp_version": 2}
    with pytest.raises(ValueError, match=why):
        S2FTCallback(PERMUTED).on_init_end(args, *given, model=tiny("llama"))
    S2FTCallback(INDEXED).on_init_end(args, *given, model=tiny("llama"))


@pytest.mark.parametrize("callback", [S2FTCallback(INDEXED), FarmsLRCallback(), KeepZerosCallback()])
def test_two_engines(callback, tmp_path, monkeypatch):
    run = trainer(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run.args.deepspeed = {"zero_optimization": {"stage": 2}}
    why = f"one engine must run the training for {type(callback).__name__}, got DeepSpeed and FSDP"
    with pytest.raises(ValueError, match=why):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=run.create_optimizer())


ENGINES = {
    "no sharding": ["optimizer.pt"],
    "FSDP": ["pytorch_model_fsdp_0"],
    "DeepSpeed without ZeRO": ["global_step4/mp_rank_00_model_states.pt"],
    "DeepSpeed ZeRO-1 or 2": [
        "global_step4/mp_rank_00_model_states.pt",
        "global_step4/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ],
    "DeepSpeed ZeRO-3": [
        "global_step4/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ],
}


def test_a_checkpoint_of_another_engine(tmp_path, monkeypatch):
    for engine, names in ENGINES.items():
        for name in names:
            (tmp_path / engine / name).mkdir(parents=True)

    def resume(engine):
        args = arguments(tmp_path, resume_from_checkpoint=str(tmp_path / engine))
        given = (transformers.TrainerState(), transformers.TrainerControl())
        S2FTCallback(INDEXED).on_init_end(args, *given, model=tiny("llama"))

    def refused(engine):
        for other in ENGINES.keys() - {engine}:
            why = (
                f"must be a checkpoint of a training with {engine} for S2FTCallback, got .*{other}' of one with {other}"
            )
            with pytest.raises(ValueError, match=why):
                resume(other)

    (tmp_path / "universal" / "global_step4_universal").mkdir(parents=True)
    resume("no sharding")
    resume("none")
    resume("universal")
    refused("no sharding")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    resume("FSDP")
    refused("FSDP")


def test_a_checkpoint_of_another_number_of_processes(tmp_path, monkeypatch):
    """DeepSpeed says so too, but not for the slices of ZeRO-3."""
    run = trainer(tmp_path)
    run.args.deepspeed = {"zero_optimization": {"stage": 3}}
    monkeypatch.setattr("hf_farms.callbacks.resuming.zero_stage", lambda args: 3)
    for rank in range(2):
        for name in ENGINES["DeepSpeed ZeRO-3"]:
            (tmp_path / name.replace("rank_0", f"rank_{rank}", 1)).mkdir(parents=True)
    run.args.resume_from_checkpoint = str(tmp_path)
    why = r"of as many processes as now, 1, for S2FTCallback under DeepSpeed ZeRO-3, got .* of 2\. Resume with 2 proc"
    with pytest.raises(ValueError, match=why):
        S2FTCallback(INDEXED).on_init_end(run.args, run.state, run.control, model=run.model)


def test_a_checkpoint_of_deepspeed_without_it(tmp_path):
    """The Trainer would load its weights, and start with a new optimizer without a word."""
    run = trainer(tmp_path, S2FTCallback(INDEXED), save_strategy="steps", save_steps=2)
    run.train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "optimizer.pt").unlink()
    for name in ENGINES["DeepSpeed ZeRO-3"]:
        (checkpoint / name).mkdir(parents=True)
    again = trainer(tmp_path, S2FTCallback(INDEXED))
    why = (
        r"a training with no sharding for S2FTCallback, got .*of one with DeepSpeed ZeRO-3\. .*selection=load_selection"
    )
    with pytest.raises(ValueError, match=why):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_callbacks_that_the_trainer_makes_anew_from_a_checkpoint(tmp_path):
    def run(folder, **options):
        one = trainer(folder, S2FTCallback(INDEXED), save_strategy="steps", save_steps=2, **options)
        one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if options else None)
        return plain(one.model)

    assert same(run(tmp_path), run(tmp_path / "again", restore_callback_states_from_checkpoint=True))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            PERMUTED,
            r"layout must be 'indexed' for S2FTCallback under ZeRO-3, got 'permuted', whose .* Pass S2FTConfig\(l",
        ),
        (
            S2FTConfig(budget=0.2, write_back=False),
            r"write_back must be True for S2FTCallback under ZeRO-3, got False: ",
        ),
    ],
)
def test_options_under_zero_3(config, why, tmp_path):
    args, given = arguments(tmp_path), (transformers.TrainerState(), transformers.TrainerControl())
    args.deepspeed = {"zero_optimization": {"stage": 3}}
    args.deepspeed_plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(config=args.deepspeed))
    with pytest.raises(ValueError, match=why):
        S2FTCallback(config).on_init_end(args, *given, model=tiny("llama"))
    args.deepspeed["zero_optimization"]["stage"] = 2
    S2FTCallback(config).on_init_end(args, *given, model=tiny("llama"))


def test_a_late_callback_under_deepspeed(tmp_path):
    run = trainer(tmp_path)
    args, optimizer = run.args, run.create_optimizer()
    args.deepspeed = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match=r"must be applied before the model is wrapped for distributed training"):
        S2FTCallback(INDEXED).on_train_begin(args, run.state, run.control, model=run.model, optimizer=optimizer)


@EARLY
def test_adapters_of_peft(early, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    before = weights(model)

    def train():
        trainer(tmp_path, S2FTCallback(INDEXED), early=early, model=model).train()

    with pytest.raises(ModelError, match="must be without adapters for S2FT, got PEFT adapters on Peft") as caught:
        train()
    assert "merge_and_unload()" in caught.value.hint
    assert same(before, weights(model))
    merged = model.merge_and_unload()
    trainer(tmp_path, S2FTCallback(INDEXED), early=early, model=merged).train()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    tiny("llama").save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    with pytest.raises(ModelError, match=r"float32, bfloat16 or float16 for S2FT, got a quantized LlamaForCausalLM\."):
        apply_s2ft(model, INDEXED)


@pytest.mark.filterwarnings("ignore")
def test_sharded_weights():
    model = tiny("llama")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh)
        why = r"must be whole on every process for S2FT, got a sharded one in model.embed_tokens.weight\."
        with pytest.raises(ModelError, match=why) as caught:
            apply_s2ft(model, INDEXED)
        assert caught.value.hint.startswith("Apply S2FT, or merge, before fully_shard (FSDP2)")
    finally:
        torch.distributed.destroy_process_group()


def test_weights_that_are_not_there():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(tiny("llama").config)
    with pytest.raises(ModelError, match=r"weights must be loaded for S2FT, got a meta tensor in model.embed_tokens"):
        apply_s2ft(model, INDEXED)


@EARLY
@pytest.mark.parametrize(
    ("family", "options", "error", "why"),
    [
        (
            "llama",
            {"budget": 1e-6},
            ValueError,
            "budget must be at least .* to train one head or channel in each block",
        ),
        ("gpt2", {"budget": 0.1, "roles": ("gate",)}, ValueError, r"that the model has \(.*down.*\), got 'gate'"),
        ("mixtral", {"budget": 0.1}, ModelError, "got experts inside one parameter for role 'down'"),
        ("t5", {"budget": 0.1, "layout": "permuted"}, ModelError, "got position biases for every head in T5"),
    ],
)
def test_what_a_model_cannot_give(early, family, options, error, why, tmp_path):
    model = family_model(family)
    before = weights(model)
    run = Trainer(model=model, args=arguments(tmp_path), train_dataset=Tokens())
    callback = S2FTCallback(S2FTConfig(**options))

    def add():
        if early:
            Trainer(model=model, args=arguments(tmp_path), train_dataset=Tokens(), callbacks=[callback])
        run.add_callback(callback)
        run.train()

    with pytest.raises(error, match=why):
        add()
    assert same(before, weights(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_selection_of_another_model(tmp_path):
    found = apply_s2ft(family_model("opt"), INDEXED)
    with pytest.raises(ValueError, match=r"selection must name layers of this model, got 'model.decoder.layers"):
        trainer(tmp_path, S2FTCallback(selection=found))


def test_a_config_beside_a_selection(tmp_path):
    found = apply_s2ft(tiny("llama"), INDEXED)
    with pytest.raises(ValueError, match="config must be left out if there is a selection"):
        S2FTCallback(PERMUTED, selection=found)
