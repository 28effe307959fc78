"""S2FT under ZeRO of DeepSpeed: two processes against two of DDP, in a real Trainer."""

import pytest
import torch
from engines import NEEDS_DEEPSPEED
from launch import run_script
from safetensors.torch import load_file

from hf_farms import S2FTAdapter

pytestmark = NEEDS_DEEPSPEED

SCRIPT = """
import os, sys
import torch, transformers
from engines import whole_weights, zero
from families import family_model
from models import tiny
from trainers import *
from hf_farms import FarmsLRCallback, FarmsLRConfig, S2FTCallback, S2FTConfig
folder, rank = sys.argv[1], int(os.environ["RANK"])
OPTIONS = {"per_device_train_batch_size": 2, "weight_decay": 0.1, "max_grad_norm": 0.0, "adam_epsilon": 1e-4}
OPTIONS |= {"save_strategy": "steps", "save_steps": 4}
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
MODELS = {
    "llama": (lambda: signal(tiny("llama")), {"budget": 0.2}),
    "roles": (lambda: signal(tiny("llama")), {"budget": 0.3, "roles": ROLES}),
    "gpt2": (lambda: family_model("gpt2"), {"budget": 0.2, "roles": ("q", "v", "o", "up", "down")}),
}

def run(name, engine, kind="llama", *, rates=False, resume=None, make=None, **options):
    model, config = MODELS[kind]
    callbacks = [S2FTCallback(S2FTConfig(**config))]
    callbacks += [FarmsLRCallback(FarmsLRConfig(start=0, interval=2))] if rates else []
    args = arguments(f"{folder}/{name}", **{**OPTIONS, **engine, **options})
    one = Trainer(model=(make or model)(), args=args, train_dataset=Tokens(), callbacks=callbacks)
    one.train(resume_from_checkpoint=resume)
    return whole_weights(one.model)

results = {kind: {"ddp": run(f"{kind}-ddp", {}, kind)} for kind in MODELS}
results["rates"] = {"ddp": run("rates-ddp", {}, rates=True)}
for stage in (2, 3):
    for kind in MODELS:
        results[kind][stage] = run(f"{kind}-{stage}", zero(stage), kind)
    results["rates"][stage] = run(f"rates-{stage}", zero(stage), rates=True)
    again = f"{folder}/llama-{stage}/checkpoint-4"
    results["llama"][f"resumed-{stage}"] = run(f"llama-{stage}-resumed", zero(stage), resume=again)
    offload = zero(stage, offload_optimizer={"device": "cpu"})
    results["llama"][f"offload-{stage}"] = run(f"offload-{stage}", offload)
results["llama"][1] = run("llama-1", zero(1))
# from_pretrained keeps parameters in parts from the start where it knows the arguments of the training.
signal(tiny("llama")).save_pretrained(f"{folder}/saved")
torch.distributed.barrier()
load = lambda: transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/saved")
results["llama"]["loaded-3"] = run("loaded-3", zero(3), make=load)
torch.save(results, f"{folder}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s2ft")
    run_script(SCRIPT, folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["llama", "roles", "gpt2", "rates"])
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_equal_those_of_ddp(results, kind, stage):
    for result in results:
        distance = _distance(result[kind][stage], result[kind]["ddp"])
        assert distance == 0 if stage == 2 else distance < 1e-6


@pytest.mark.parametrize("other", [1, "offload-2", "offload-3", "loaded-3"])
def test_other_forms_equal_ddp(results, other):
    for result in results:
        assert _distance(result["llama"][other], result["llama"]["ddp"]) < 1e-6


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_training_ends_as_one_without_a_stop(results, stage):
    for result in results:
        assert _distance(result["llama"][stage], result["llama"][f"resumed-{stage}"]) == 0


@pytest.mark.parametrize("name", ["llama-2", "llama-3", "llama-3-resumed"])
def test_checkpoints_are_plain_and_adapters_complete(folder, results, name):
    stage = int(name.split("-")[1])
    saved = load_file(folder / name / "checkpoint-8" / "model.safetensors")
    expected = results[0]["llama"][stage]
    plain = load_file(folder / "llama-ddp" / "checkpoint-8" / "model.safetensors")
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved)
    adapter = S2FTAdapter.from_pretrained(folder / name / "checkpoint-8")
    other = S2FTAdapter.from_pretrained(folder / "llama-ddp" / "checkpoint-8")
    assert adapter.patches.keys() == other.patches.keys()
    for key, patch in adapter.patches.items():
        assert torch.equal(patch.base, other.patches[key].base)
        assert torch.allclose(patch.values, other.patches[key].values, atol=1e-6, rtol=0)


def _distance(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
