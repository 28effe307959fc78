"""Layer-wise rates under ZeRO of DeepSpeed: two processes against two of DDP, in a real Trainer."""

import pytest
import torch
from engines import NEEDS_DEEPSPEED
from launch import run_script

pytestmark = NEEDS_DEEPSPEED

SCRIPT = """
import os, sys
import torch, transformers
from engines import whole_weights, zero
from models import tiny
from trainers import *
from hf_farms import FarmsLRCallback, FarmsLRConfig, layerwise_optimizer
folder, rank = sys.argv[1], int(os.environ["RANK"])

# Rounding is not blown up by AdamW where gradients are as small as its epsilon, nor by clipping.
OPTIONS = {"per_device_train_batch_size": 2, "weight_decay": 0.1, "max_grad_norm": 0.0, "adam_epsilon": 1e-4}

def run(name, engine, *, groups=False, callback=None, resume=None, **options):
    callback = callback or FarmsLRCallback(FarmsLRConfig(start=0, interval=2))
    made = {"optimizer_cls_and_kwargs": layerwise_optimizer(callback)} if groups else {}
    args = arguments(f"{folder}/{name}", **{**OPTIONS, **engine, **options})
    one = Trainer(model=signal(tiny("llama")), args=args, train_dataset=Tokens(), callbacks=[callback], **made)
    one.train(resume_from_checkpoint=resume)
    return one, callback

def result(one, callback):
    return {"weights": whole_weights(one.model), "memory": callback.memory}

results = {"ddp": result(*run("ddp", {}))}
for stage in (1, 2, 3):
    for groups in (False, True):
        name = f"zero-{stage}" + ("-groups" if groups else "")
        saved = {"save_strategy": "steps", "save_steps": 4}
        one, callback = run(name, zero(stage), groups=groups, **saved)
        results[name] = result(one, callback)
        results[name]["groups"] = len(one.lr_scheduler.get_last_lr())
        checkpoint = f"{folder}/{name}/checkpoint-4"
        results[name]["resumed"] = result(*run(name, zero(stage), groups=groups, resume=checkpoint, **saved))["weights"]
torch.save(results, f"{folder}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates")
    run_script(SCRIPT, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


WAYS = ["zero-1", "zero-1-groups", "zero-2", "zero-2-groups", "zero-3", "zero-3-groups"]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_those_of_ddp(results, way):
    for result in results:
        distance = _distance(result[way]["weights"], result["ddp"]["weights"])
        assert distance < 1e-6 if "3" in way else distance == 0
        assert result[way]["memory"]["factors"] == pytest.approx(result["ddp"]["memory"]["factors"], rel=1e-5)
        assert max(result[way]["memory"]["factors"].values()) > 1.3


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_ends_as_one_without_a_stop(results, way):
    for result in results:
        assert _distance(result[way]["weights"], result[way]["resumed"]) == 0


def test_only_layerwise_optimizer_makes_groups(results):
    # With and without weight decay; the same for three blocks, and the weights outside.
    assert [results[0][way]["groups"] for way in WAYS] == [2, 8] * 3


def _distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)
