"""FarmsLRCallback in two processes: DDP and FSDP2, in a real Trainer."""

import re

import pytest
import torch
from launch import results_of
from models import tiny
from trainers import same, signal, trainer, weights

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.spectra.analysis import analyze

DDP = """
import math, sys, warnings
import torch, transformers
from models import tiny
from trainers import *
from transformers import Trainer
from hf_farms import FarmsLRCallback, FarmsLRConfig, LayerwiseLRCallback
from hf_farms.errors import HfFarmsWarning
folder, rank = sys.argv[1], int(__import__("os").environ["RANK"])
options = {"per_device_train_batch_size": 2, "lr_scheduler_type": "linear", "optim": "adamw_torch_fused"}

frozen = FarmsLRCallback(FarmsLRConfig(start=0, frozen=True))
run = trainer(folder, frozen, **options)
run.train()

model = signal(tiny("llama"))
factors = frozen.memory["factors"]
optimizer = hand_built(model, [factors[f"model.layers.{i}.self_attn.q_proj"] for i in range(3)], 1e-2)
schedule = transformers.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=8)
args = arguments(folder + "/other", **options)
other = Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, schedule))
other.train()

class Break(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            model.model.layers[2].mlp.up_proj.weight.data[0, 0] = math.nan

broken = FarmsLRCallback(FarmsLRConfig(start=0, interval=1))
last = trainer(folder + "/broken", broken, max_grad_norm=0, **options)
last.add_callback(Break())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    last.train()
messages = [str(w.message) for w in caught if issubclass(w.category, HfFarmsWarning)]

def given(name, factors):
    callback = LayerwiseLRCallback(factors)
    own = trainer(f"{folder}/{name}", callback, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            own.train()
        except ValueError as error:
            return str(error)
    said = [str(w.message) for w in said if issubclass(w.category, HfFarmsWarning)]
    return {"weights": weights(own.model), "factors": callback.memory["factors"], "messages": said}

def fails(progress):
    if rank == 1 and progress.step == 3:
        raise RuntimeError("measured nothing")
    return {"mlp": 1.0 + progress.step}

auto = FarmsLRCallback(FarmsLRConfig(start=0, max_share=0.9))
trainer(folder + "/auto", auto, **options).train()

result = {
    "auto": auto.memory["interval"],
    "wrapped": type(run.model_wrapped).__name__,
    "weights": weights(run.model),
    "by_hand": weights(other.model),
    "memory": frozen.memory,
    "broken": broken.memory,
    "messages": messages,
    "a function of the rank": given("function", lambda _: {"mlp": 1.5 + rank}),
    "a function that fails once": given("fails", fails),
    "numbers of the rank": given("numbers", {"mlp": 1.5 + rank}),
}
torch.save(result, f"{folder}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return results_of(DDP, tmp_path_factory.mktemp("ddp"))


def test_two_processes_stay_identical(ddp):
    first, second = ddp
    assert first["wrapped"] == "DistributedDataParallel"
    assert first["memory"] == second["memory"]
    assert max(first["memory"]["factors"].values()) > 1.3
    assert same(first["weights"], second["weights"])


def test_two_processes_decide_the_same_interval(ddp):
    first, second = ddp
    assert first["auto"] == second["auto"] >= 1


def test_two_processes_equal_an_optimizer_with_real_groups_bit_by_bit(ddp):
    for result in ddp:
        assert same(result["weights"], result["by_hand"])


def test_nan_in_the_share_of_one_process_stops_neither(ddp):
    for result in ddp:
        assert result["broken"]["step"] == 2
        assert len(result["messages"]) == 1
        assert "stay as they are at step 3" in result["messages"][0]
        assert "model.layers.2.mlp.up_proj" in result["messages"][0]


@pytest.mark.parametrize(
    ("case", "factor", "message"),
    [
        ("a function of the rank", 1.5, "factors differ between processes at step 0, those of the first process count"),
        ("a function that fails once", 8.0, "Learning rates stay as they are at step 3: .*measured nothing"),
    ],
)
def test_factors_of_the_user_are_those_of_the_first_process(ddp, case, factor, message):
    first, second = (result[case] for result in ddp)
    assert first["factors"] == second["factors"] == {"mlp": factor}
    assert same(first["weights"], second["weights"])
    for result in (first, second):
        (said,) = result["messages"]
        assert re.match(message, said)


def test_other_numbers_on_another_process_are_refused(ddp):
    for result in ddp:
        assert re.match(r"factors must be the same on all processes, got \{'mlp': 1.5\}", result["numbers of the rank"])


# accelerate shards on accelerators only and makes DDP of it on a CPU without a word; told that this is FSDP, it
# prepares model and optimizer as it does there, with gloo.
FSDP2 = """
import sys
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from hf_farms.callbacks.compatibility import check_supported
from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.callbacks.trainer import unwrap_optimizer
from trainers import trainer, weights
from torch.distributed.fsdp import FullyShardedDataParallel
folder, rank = sys.argv[1], int(__import__("os").environ["RANK"])
callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=4))
run = trainer(folder, callback, per_device_train_batch_size=2, optim="sgd")
run.is_fsdp_enabled = True
run.accelerator.state.distributed_type = DistributedType.FSDP
run.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"]
)
run.train()
parameters = dict(run.model.named_parameters())
result = {
    "types": {type(parameter.data).__name__ for parameter in parameters.values()},
    "groups": len(unwrap_optimizer(run.optimizer).param_groups),
    "weights": {name: parameter.full_tensor().detach() for name, parameter in parameters.items()},
    "memory": callback.memory,
    "log": [entry for entry in run.state.log_history if "farms_lr/seconds" in entry],
    "refused": None,
}
try:
    old = FullyShardedDataParallel(torch.nn.Linear(8, 8), device_id=torch.device("cpu"))
    check_supported(run.args, old, torch.optim.SGD(old.parameters()))
except ValueError as error:
    result["refused"] = str(error)
torch.save(result, f"{folder}/{rank}.pt")
"""


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this torch needs a GPU")
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="each process needs a GPU of its own")
def test_weights_sharded_by_fsdp2(tmp_path):
    first, second = results_of(FSDP2, tmp_path)
    assert "got FSDP1. Set fsdp_version: 2" in first["refused"]
    assert first["types"] == {"DTensor"}
    assert first["groups"] == 2
    assert first["memory"] == second["memory"]
    assert same(first["weights"], second["weights"])
    whole = [block.alpha for block in analyze(signal(tiny("llama"))).blocks]
    assert [first["log"][0][f"farms_lr/model.layers.{i}/alpha"] for i in range(3)] == pytest.approx(whole, rel=1e-5)
    # The same samples in one process.
    found = {}
    for name, callback in (("with", FarmsLRCallback(FarmsLRConfig(start=0, interval=4))), ("without", None)):
        run = trainer(tmp_path / name, callback, optim="sgd")
        run.train()
        found[name] = weights(run.model)
    far = {name: _distance(first["weights"], other) for name, other in found.items()}
    assert far["with"] < 1e-6
    assert far["without"] > 1e-4


def _distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)
