"""FarmsLRCallback with what users of a Trainer do beside it."""

import sys
from pathlib import Path

import pytest
import torch
import transformers
from families import family_model
from launch import launch

sys.path.append(str(Path(__file__).parent))
from test_farms_lr import FAST, Tokens, arguments, innermost, same, signal, trainer
from torch.utils.data import Dataset
from transformers import Trainer

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.callbacks.refusals import check_supported

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.is_gradient_checkpointing. is deprecated")


def finite(model):
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.1},
        {"bf16": True},
        {"activation_checkpointing": True},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "save_steps": 4}
        | {"eval_steps": 4, "metric_for_best_model": "loss"},
    ],
    ids=["accumulation", "clipping", "bf16", "checkpointing", "plateau", "best"],
)
def test_options(options, tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST), **options)
    run.train()
    assert finite(run.model)
    assert any(key.endswith("/factor") for entry in run.state.log_history for key in entry)


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


class Images(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        source = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=source), "labels": index % 2}


def test_vision_models_learn_by_their_convolutions(tmp_path):
    model = family_model("resnet")
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=2, unit="layer", min_eigenvalues=10))
    Trainer(model=model, args=arguments(tmp_path), train_dataset=Images(), callbacks=[callback]).train()
    assert {name.rsplit(".", 1)[-1] for name in callback.memory["factors"]} == {"convolution"}


class Pairs(Tokens):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "attention_mask": torch.ones(12, dtype=torch.long)}


def test_seq2seq(tmp_path):
    model = family_model("t5")
    model.config.decoder_start_token_id = 0
    args = transformers.Seq2SeqTrainingArguments(**arguments(tmp_path).to_dict() | {"output_dir": str(tmp_path)})
    callback = FarmsLRCallback(FAST)
    transformers.Seq2SeqTrainer(model=model, args=args, train_dataset=Pairs(), callbacks=[callback]).train()
    assert callback.memory["step"] == 6


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
    assert len(innermost(run.optimizer).param_groups) == 2
    assert finite(run.model)


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
from test_farms_lr import FAST, FarmsLRCallback, trainer, weights
callback = FarmsLRCallback(FAST)
run = trainer(sys.argv[1], callback, per_device_train_batch_size=2)
run.train()
torch.save((weights(run.model), callback.memory), f"{{sys.argv[1]}}/{{run.args.process_index}}.pt")
"""


def test_two_processes_stay_identical(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(paths=[str(here), str(here.parent)]))
    done = launch(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, memory), (second, other) = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert memory == other
    assert memory["step"] == 6
    assert same(first, second)


SHARDED = """
import sys
sys.path[:0] = {paths!r}
import torch
from torch.distributed.fsdp import fully_shard
from test_farms_lr import signal, tiny
from hf_farms.callbacks.farms_lr import FarmsLRCallback, FarmsLRConfig
from hf_farms.callbacks.groups import innermost
from hf_farms.spectra.analysis import analyze
from transformers import TrainerState, TrainerControl, TrainingArguments
torch.distributed.init_process_group("gloo")
model = signal(tiny("llama"))
expected = [block.alpha for block in analyze(model).blocks]
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
for block in model.model.layers:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
assert [block.alpha for block in analyze(model).blocks] == expected
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
args = TrainingArguments(output_dir=sys.argv[1], max_steps=4, use_cpu=True)
state, control = TrainerState(max_steps=4), TrainerControl()
callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=1))
given = dict(model=model, optimizer=optimizer)
callback.on_train_begin(args, state, control, **given)
for step in range(4):
    state.global_step = step
    callback.on_step_begin(args, state, control, **given)
    ids = torch.arange(12)[None] + torch.distributed.get_rank()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert len(optimizer.param_groups) == 1
factors = [None, None]
torch.distributed.all_gather_object(factors, callback.memory["factors"])
assert factors[0] == factors[1] and max(factors[0].values()) > 1.1
print("done")
torch.distributed.destroy_process_group()
"""


def test_weights_sharded_by_fsdp2(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "train.py"
    script.write_text(SHARDED.format(paths=[str(here), str(here.parent)]))
    done = launch(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done") == 2


@pytest.mark.parametrize("optim", ["galore_adamw_layerwise", "lomo", "adalomo"])
def test_optimizers_without_a_step_are_refused(optim, tmp_path):
    model = signal(family_model("llama"))
    args = arguments(tmp_path)
    args.optim = optim
    with pytest.raises(ValueError, match=f"got '{optim}', which updates weights during the backward"):
        check_supported(args, model, torch.optim.SGD(model.parameters()))


def test_deepspeed_is_refused(tmp_path):
    model = family_model("llama")
    args = arguments(tmp_path)
    args.deepspeed = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match=r"got DeepSpeed, which steps inside its backward\. Use DDP or FSDP2"):
        check_supported(args, model, torch.optim.SGD(model.parameters()))
