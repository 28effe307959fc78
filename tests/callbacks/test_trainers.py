"""FarmsLRCallback with what users of a Trainer do beside it."""

from types import SimpleNamespace

import datasets
import pytest
import torch
import transformers
from families import family_model
from models import CHECKPOINTING, NEEDS_COMPILE, tiny
from trainers import FAST, Images, Pairs, Tokens, arguments, signal, trainer, weights, word_level
from transformers import Trainer

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.callbacks.compatibility import check_supported
from hf_farms.callbacks.trainer import unwrap_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.is_gradient_checkpointing. is deprecated")


def finite(model):
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.1},
        {"bf16": True},
        {CHECKPOINTING: True},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
    ],
    ids=["accumulation", "clipping", "bf16", "checkpointing", "plateau"],
)
def test_options(options, tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST), **options)
    run.train()
    assert finite(run.model)
    assert any(key.endswith("/factor") for entry in run.state.log_history for key in entry)


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    # The largest loss counts as the best, so that the best is not the last.
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    run = trainer(tmp_path, FarmsLRCallback(FAST), **options)
    run.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{max(losses, key=losses.get)}")
    assert run.evaluate()["eval_loss"] == max(losses.values()) > losses[8]


@NEEDS_COMPILE
def test_a_compiled_model(tmp_path):
    """Compiled without generating code, which takes minutes and is no other to the callback."""
    found = []
    for compiled in (True, False):
        callback = FarmsLRCallback(FAST)
        options = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        run = trainer(tmp_path / str(compiled), callback, max_steps=4, **options)
        run.train()
        assert isinstance(run.model_wrapped, torch._dynamo.eval_frame.OptimizedModule) == compiled
        found.append((callback.memory["factors"], weights(run.model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-3)
    assert max(found[0][0].values()) > 1.3
    assert all(torch.allclose(found[0][1][name], found[1][1][name], atol=1e-3) for name in found[0][1])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_sft_of_trl(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    data = datasets.Dataset.from_list([{"input_ids": Tokens().ids[i].tolist()} for i in range(32)])
    options = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "report_to": "none"}
    options |= {"use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True, "max_length": 12}
    args = trl.SFTConfig(output_dir=str(tmp_path), dataset_kwargs={"skip_prepare_dataset": True}, **options)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_level(), pad_token="0", eos_token="1")
    run = trl.SFTTrainer(model=signal(tiny("llama")), args=args, train_dataset=data, processing_class=tokenizer)
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=2))
    run.add_callback(callback)
    run.train()
    assert callback.memory["step"] == 2
    assert max(callback.memory["factors"].values()) > 1.1
    assert [entry["step"] for entry in run.state.log_history if "farms_lr/seconds" in entry] == [0, 2]


def test_the_card_of_the_trainer_is_that_of_a_plain_one(tmp_path):
    cards = []
    for callback in (FarmsLRCallback(FAST), None):
        run = trainer(tmp_path / "run", callback, eval_strategy="steps", eval_steps=4, learning_rate=0.0)
        run.train()
        run.create_model_card(model_name="run")
        cards.append((tmp_path / "run" / "README.md").read_text())
    assert cards[0] == cards[1]
    assert "| Training Loss |" in cards[0]


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_lora_learns_by_the_sum_of_base_and_adapter(unit, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(signal(family_model("llama")), config)
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=2, unit=unit))
    run = trainer(tmp_path, callback, model=model)
    run.train()
    assert finite(model)
    assert max(callback.memory["factors"].values()) > 1.1


def test_vision_models_learn_by_their_convolutions(tmp_path):
    model = family_model("resnet")
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=2, unit="layer", min_eigenvalues=10))
    Trainer(model=model, args=arguments(tmp_path), train_dataset=Images(), callbacks=[callback]).train()
    assert {name.rsplit(".", 1)[-1] for name in callback.memory["factors"]} == {"convolution"}


def test_seq2seq(tmp_path):
    model = family_model("t5")
    signal(model, [*model.encoder.block, *model.decoder.block])
    model.config.decoder_start_token_id = 0
    args = transformers.Seq2SeqTrainingArguments(**arguments(tmp_path).to_dict() | {"output_dir": str(tmp_path)})
    callback = FarmsLRCallback(FAST)
    transformers.Seq2SeqTrainer(model=model, args=args, train_dataset=Pairs(), callbacks=[callback]).train()
    assert callback.memory["step"] == 6
    assert max(callback.memory["factors"].values()) > 1.1


def test_auto_find_batch_size_starts_again_cleanly(tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST), auto_find_batch_size=True, per_device_train_batch_size=8)
    step, failed = run.training_step, []

    def out_of_memory_once(*args, **kwargs):
        if run.state.global_step == 3 and not failed:
            failed.append(True)
            raise RuntimeError("CUDA out of memory.")
        return step(*args, **kwargs)

    run.training_step = out_of_memory_once
    run.train()
    assert failed
    assert run.state.global_step == 8
    assert [path.name for path in tmp_path.glob("farms_lr*.jsonl")] == ["farms_lr.jsonl"]
    assert len(unwrap_optimizer(run.optimizer).param_groups) == 2
    assert finite(run.model)


@pytest.mark.parametrize("optim", ["galore_adamw_layerwise", "lomo", "adalomo"])
def test_optimizers_without_a_step_are_refused(optim, tmp_path):
    model = signal(family_model("llama"))
    args = arguments(tmp_path)
    args.optim = optim
    with pytest.raises(ValueError, match=f"got '{optim}', which updates weights during the backward"):
        check_supported(args, model, torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "optim, learning_rate and weight_decay"),
        ({"scheduler": {"type": "WarmupLR"}}, "lr_scheduler_type and warmup_steps"),
    ],
)
def test_configs_of_deepspeed_with_an_optimizer_or_scheduler_are_refused(entry, line, tmp_path):
    model = family_model("llama")
    args = arguments(tmp_path)
    args.deepspeed = {"zero_optimization": {"stage": 2}, **entry}
    args.deepspeed_plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(config=args.deepspeed))
    (name, value), optimizer = next(iter(entry.items())), torch.optim.SGD(model.parameters())
    remedy = rf"must leave the {name} to .* got '{value['type']}'\. Remove its entry \"{name}\": {line} of Train"
    with pytest.raises(ValueError, match=remedy):
        check_supported(args, model, optimizer)
    check_supported(args, model, optimizer, monitor=True)
    del args.deepspeed_plugin.hf_ds_config.config[name]
    check_supported(args, model, optimizer)
