"""KeepZerosCallback under ZeRO of DeepSpeed: two processes against two of DDP, in a real Trainer."""

import pytest
from engines import NEEDS_DEEPSPEED
from launch import results_of
from trainers import pruned, weights

pytestmark = NEEDS_DEEPSPEED

SCRIPT = """
import os, sys, warnings
import peft, torch, transformers
from engines import whole_weights, zero
from models import tiny
from trainers import *
from hf_farms import KeepZerosCallback, S2FTCallback, S2FTConfig
from hf_farms.callbacks import zero_fragments
folder, rank = sys.argv[1], int(os.environ["RANK"])
# Clipping acts in each step: the norms must be the same.
OPTIONS = {"per_device_train_batch_size": 2, "max_steps": 4, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.1}

def run(name, engine, *first, make=pruned):
    args = arguments(f"{folder}/{name}", **{**OPTIONS, **engine})
    callbacks = [*first, KeepZerosCallback()]
    one = Trainer(model=make(), args=args, train_dataset=Tokens(), callbacks=callbacks)
    one.train()
    return whole_weights(one.model)

def with_lora():
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(pruned(), config)

def refused(*given, **options):
    try:
        run("refused", *given, **options)
    except ValueError as error:
        return str(error)

results = {}
for name, engine in {"ddp": {}, 1: zero(1), 2: zero(2), 3: zero(3)}.items():
    results[f"full {name}"] = run(f"full-{name}", engine)
    results[f"s2ft {name}"] = run(f"s2ft-{name}", engine, S2FTCallback(S2FTConfig(budget=0.3)))
    if name != 3:
        results[f"lora {name}"] = run(f"lora-{name}", engine, make=with_lora)
results["full offload"] = run("offload", zero(3, offload_optimizer={"device": "cpu"}))
results["refused lora"] = refused(zero(3), make=with_lora)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    run("dense", zero(3), make=lambda: tiny("llama"))
results["dense"] = [str(w.message) for w in caught if "hf_farms" in type(w.message).__module__]
# Another version of DeepSpeed, on one process.
if rank == 1:
    zero_fragments._place = lambda zero, optimizer, parameter: parameter.moved
results["refused version"] = refused(zero(2))
torch.save(results, f"{folder}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of(SCRIPT, tmp_path_factory.mktemp("zeros"))


CASES = [f"{kind} {stage}" for kind in ("full", "s2ft", "lora") for stage in (1, 2, 3)]


@pytest.mark.parametrize("case", [*(case for case in CASES if case != "lora 3"), "full offload"])
def test_zeros_are_kept_as_under_ddp(results, case):
    start, kind = weights(pruned()), case.split()[0]
    for result in results:
        trained, expected = result[case], result[f"{kind} ddp"]
        assert trained.keys() == expected.keys()
        assert max((trained[name] - expected[name]).abs().max().item() for name in expected) < 1e-6
        if kind != "lora":
            for name, before in start.items():
                if ".layers." in name and before.ndim == 2:
                    assert (before == 0).any()
                    assert not trained[name][before == 0].any()
            assert max((trained[name] - start[name]).abs().max().item() for name in start) > 1e-3


def test_what_is_refused(results):
    for result in results:
        assert (
            "weights must be whole on every process for KeepZerosCallback with adapters, got ZeRO-3"
            in (result["refused lora"])
        )
        assert "found in the flat tensors of DeepSpeed for KeepZerosCallback" in result["refused version"]
        assert "has no attribute 'moved'" in result["refused version"]


def test_a_dense_model_is_a_warning(results):
    for result in results:
        assert [text for text in result["dense"] if "no trained or adapted weight" in text]
