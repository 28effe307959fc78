"""Layer-wise rates under ZeRO-3 of DeepSpeed where something fails on one of two processes."""

import pytest
from engines import NEEDS_DEEPSPEED
from launch import results_of

pytestmark = NEEDS_DEEPSPEED

SCRIPT = """
import math, os, sys, warnings
import torch, transformers
from engines import zero
from models import tiny
from trainers import *
from hf_farms import FarmsLRCallback, FarmsLRConfig, PruneConfig, S2FTAdapter, S2FTCallback, S2FTConfig, prune, restore
from hf_farms.callbacks import zero_fragments
folder, rank = sys.argv[1], int(os.environ["RANK"])

class Break(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3 and rank == 1:
            model.model.layers[2].mlp.up_proj.weight.ds_tensor[0] = math.nan

def run(name, *callbacks, stage=3, **options):
    args = arguments(f"{folder}/{name}", max_grad_norm=0.0, **zero(stage), **options)
    one = Trainer(model=signal(tiny("llama")), args=args, train_dataset=Tokens(), callbacks=list(callbacks))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one.train()
    return [str(w.message) for w in caught if "hf_farms" in type(w.message).__module__]

broken = FarmsLRCallback(FarmsLRConfig(start=0, interval=1))
results = {"messages": run("broken", broken, Break(), max_steps=6), "memory": broken.memory}

# Another version of DeepSpeed, on one process.
place = zero_fragments._place
if rank == 1:
    zero_fragments._place = lambda zero, optimizer, parameter: parameter.moved
try:
    run("other", FarmsLRCallback(FarmsLRConfig(start=0)), stage=2, max_steps=2)
except ValueError as error:
    results["refused"] = str(error)
zero_fragments._place = place

def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error} {getattr(error, 'hint', '')}"

def trained(*callbacks):
    args = arguments(f"{folder}/trained", **{**zero(3), "max_steps": 1})
    one = Trainer(model=tiny("llama"), args=args, train_dataset=Tokens(), callbacks=list(callbacks))
    one.train()
    return one.model

one, plain = trained(S2FTCallback(S2FTConfig(budget=0.3))), trained()
adapter = S2FTAdapter.from_model(one)
other = S2FTConfig(budget=0.3, layout="permuted"), S2FTConfig(budget=0.3, write_back=False)
results["cells"] = {
    "restore": refusal(lambda: restore(one)),
    "merge": refusal(lambda: adapter.merge(plain)),
    "prune": refusal(lambda: prune(plain, PruneConfig(method="magnitude", allocation="uniform"))),
    "permuted": refusal(lambda: run("permuted", S2FTCallback(other[0]), max_steps=1)),
    "write_back": refusal(lambda: run("two", S2FTCallback(other[1]), max_steps=1)),
}
torch.save(results, f"{folder}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of(SCRIPT, tmp_path_factory.mktemp("failures"))


def test_nan_in_the_part_of_one_process_stops_neither(results):
    for result in results:
        assert result["memory"]["step"] == 2
        (message,) = [text for text in result["messages"] if "stay as they are" in text]
        assert "stay as they are at step 3: weights must be finite" in message
        assert "model.layers.2.mlp.up_proj" in message


def test_where_the_parts_are_not_found_all_processes_name_the_line(results):
    for result in results:
        assert "must have a group for each factor of FarmsLRCallback" in result["refused"]
        assert "has no attribute 'moved'" in result["refused"]
        assert "optimizer_cls_and_kwargs=layerwise_optimizer(callback))" in result["refused"]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("restore", "ModelError: model must have whole weights to be restored, got one that ZeRO-3 has sharded"),
        ("merge", "ModelError: weights must be whole on every process for S2FT, got one that ZeRO-3 has partitioned"),
        ("prune", "ModelError: weights must be whole on every process to be overwritten, got a sharded one in model"),
        ("permuted", "ValueError: layout must be 'indexed' for S2FTCallback under ZeRO-3, got 'permuted'"),
        ("write_back", "ValueError: write_back must be True for S2FTCallback under ZeRO-3, got False"),
    ],
)
def test_what_is_refused_under_zero_3(results, what, why):
    for result in results:
        assert result["cells"][what].startswith(why)
