"""Layer-wise rates under ZeRO of DeepSpeed: two processes against two of DDP, in a real Trainer."""

import re

import pytest
from engines import NEEDS_DEEPSPEED
from launch import results_of
from models import tiny

from hf_farms.spectra.analysis import analyze

pytestmark = NEEDS_DEEPSPEED

SCRIPT = """
import contextlib, os, shutil, sys, warnings
from pathlib import Path
import torch, transformers
from engines import whole_weights, zero
from models import tiny
from trainers import *
from hf_farms import FarmsLRCallback, FarmsLRConfig, LayerwiseLRCallback, S2FTCallback, S2FTConfig, layerwise_optimizer
from hf_farms.processes import launched_ranks
from hf_farms.spectra.analysis import analyze
folder, rank = sys.argv[1], int(os.environ["RANK"])

# Rounding is not blown up by AdamW where gradients are as small as its epsilon, nor by clipping.
OPTIONS = {"per_device_train_batch_size": 2, "weight_decay": 0.1, "max_grad_norm": 0.0, "adam_epsilon": 1e-4}

def load():
    return transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/saved")

def run(name, engine, *, groups=False, callback=None, resume=None, make=lambda: signal(tiny("llama")), **options):
    callback = callback or FarmsLRCallback(FarmsLRConfig(start=0, interval=2))
    made = {"optimizer_cls_and_kwargs": layerwise_optimizer(callback)} if groups else {}
    args = arguments(f"{folder}/{name}", **{**OPTIONS, **engine, **options})
    one = Trainer(model=make(), args=args, train_dataset=Tokens(), callbacks=[callback], **made)
    one.train(resume_from_checkpoint=resume)
    return one, callback

def result(one, callback):
    return {"weights": whole_weights(one.model), "memory": callback.memory}

def patterns():
    return LayerwiseLRCallback({"mlp": 2.0, "layers.0": lambda progress: 1 / (1 + progress.step), "embed": 0.5})

def alphas(model):
    return [block.alpha for block in analyze(model, ranks=launched_ranks()).blocks]

saved = {"save_strategy": "steps", "save_steps": 4}
results = {"ddp": result(*run("ddp", {}, **saved))}
results["patterns-ddp"] = result(*run("patterns-ddp", {}, callback=patterns()))
Path(f"{folder}/fsdp/checkpoint-4/pytorch_model_fsdp_0").mkdir(parents=True, exist_ok=True)
shutil.copy(f"{folder}/ddp/checkpoint-4/trainer_state.json", f"{folder}/fsdp/checkpoint-4")
torch.distributed.barrier()
for stage in (1, 2, 3):
    for groups in (False, True):
        name = f"zero-{stage}" + ("-groups" if groups else "")
        one, callback = run(name, zero(stage), groups=groups, **saved)
        results[name] = result(one, callback)
        results[name]["alphas"] = None if groups else alphas(one.model)
        results[name]["groups"] = len(one.lr_scheduler.get_last_lr())
        checkpoint = f"{folder}/{name}/checkpoint-4"
        results[name]["resumed"] = result(*run(name, zero(stage), groups=groups, resume=checkpoint, **saved))["weights"]
for stage in (2, 3):
    offload = zero(stage, offload_optimizer={"device": "cpu"})
    results[f"offload-{stage}"] = result(*run(f"offload-{stage}", offload))
# from_pretrained keeps parameters in parts from the start where it knows the arguments of the training.
signal(tiny("llama")).save_pretrained(f"{folder}/saved")
torch.distributed.barrier()
for name, groups in (("loaded-3", False), ("loaded-3-groups", True)):
    results[name] = result(*run(name, zero(3), groups=groups, make=load))
results["patterns-2"] = result(*run("patterns-2", zero(2), callback=patterns()))
def measured(gathers):
    def factors(progress):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = progress.model.model.layers[0].mlp.up_proj
            said.update(str(warning.message) for warning in caught)
        with progress.gathered(layer) if gathers else contextlib.nullcontext():
            return {"layers.0": 1 / (1 + float(layer.weight.norm()))}
    return LayerwiseLRCallback(factors)

said = set()
results["measured-ddp"] = result(*run("measured-ddp", {}, callback=measured(True)))
assert not said
results["measured-3"] = result(*run("measured-3", zero(3), callback=measured(True)))
results["said"] = sorted(said)
results["patterns-3"] = result(*run("patterns-3", zero(3), callback=patterns(), make=load))

def refused(name, stage, *, s2ft=False, by=None, **options):
    callback = S2FTCallback(S2FTConfig(budget=0.2)) if s2ft else by
    try:
        run("refused", zero(stage), resume=f"{folder}/{name}/checkpoint-4", callback=callback, **options)
    except ValueError as error:
        return str(error)

results["1 to 2"] = whole_weights(run("zero-1-2", zero(2), resume=f"{folder}/zero-1/checkpoint-4")[0].model)
for s2ft in (False, True):
    for name, stage in (("ddp", 1), ("ddp", 3), ("zero-2", 3), ("zero-3", 2), ("fsdp", 2)):
        results[f"refused {name} {stage} {s2ft}"] = refused(name, stage, s2ft=s2ft)
for stage in (2, 3):
    results[f"groups {stage}"] = refused(f"zero-{stage}-groups", stage), refused(f"zero-{stage}", stage, groups=True)
    layers = FarmsLRCallback(FarmsLRConfig(start=0, unit="layer"))
    results[f"groups {stage}"] += (refused(f"zero-{stage}-groups", stage, groups=True, by=layers),)
torch.save(results, f"{folder}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of(SCRIPT, tmp_path_factory.mktemp("rates"))


# ZeRO-3 sums gradients in another order, and Adam divides them: 4e-6 on a CPU of AMD, below 1e-6 on one of Intel.
# Factors that are not applied make more than 1e-3.
ROUNDING = 5e-5
WAYS = ["zero-1", "zero-1-groups", "zero-2", "zero-2-groups", "zero-3", "zero-3-groups"]
# The optimizer on the CPU, and parameters that are kept in parts from the start.
FORMS = ["offload-2", "offload-3", "loaded-3", "loaded-3-groups"]


@pytest.mark.parametrize("way", WAYS + FORMS)
def test_two_processes_equal_those_of_ddp(results, way):
    for result in results:
        distance = _distance(result[way]["weights"], result["ddp"]["weights"])
        assert distance < ROUNDING if "3" in way else distance == 0
        assert result[way]["memory"]["factors"] == pytest.approx(result["ddp"]["memory"]["factors"], rel=1e-5)
        assert max(result[way]["memory"]["factors"].values()) > 1.3


def test_factors_that_are_measured_on_gathered_weights(results):
    for result in results:
        found, expected = (result[f"measured-{name}"]["memory"]["factors"]["layers.0"] for name in (3, "ddp"))
        assert found == pytest.approx(expected, rel=1e-5)
        (said,) = result["said"]
        assert said.startswith("weights of the model are empty under ZeRO-3 where they are not gathered: read them")


@pytest.mark.parametrize("stage", [2, 3])
def test_factors_by_patterns(results, stage):
    for result in results:
        trained, expected = (result[f"patterns-{name}"]["weights"] for name in (stage, "ddp"))
        assert _distance(trained, expected) < (ROUNDING if stage == 3 else 1e-12)
        assert _distance(expected, result["ddp"]["weights"]) > 1e-3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_alphas_of_a_model_under_an_engine(results, stage):
    for result in results:
        model = tiny("llama")
        model.load_state_dict(result[f"zero-{stage}"]["weights"], strict=False)
        expected = [block.alpha for block in analyze(model).blocks]
        assert result[f"zero-{stage}"]["alphas"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_ends_as_one_without_a_stop(results, way):
    for result in results:
        assert _distance(result[way]["weights"], result[way]["resumed"]) == 0


def test_stages_1_and_2_have_the_same_files(results):
    for result in results:
        assert _distance(result["1 to 2"], result["zero-1"]["weights"]) == 0


ENGINES = {
    "ddp": "no sharding",
    "fsdp": "FSDP",
    1: "DeepSpeed ZeRO-1 or 2",
    2: "DeepSpeed ZeRO-1 or 2",
    3: "DeepSpeed ZeRO-3",
}


@pytest.mark.parametrize("s2ft", [False, True], ids=["FarmsLRCallback", "S2FTCallback"])
@pytest.mark.parametrize(("name", "stage"), [("ddp", 1), ("ddp", 3), ("zero-2", 3), ("zero-3", 2), ("fsdp", 2)])
def test_a_checkpoint_of_another_engine(results, name, stage, s2ft):
    callback = "S2FTCallback" if s2ft else "FarmsLRCallback"
    written = ENGINES[int(name[-1]) if name.startswith("zero") else name]
    why = f"a training with {ENGINES[stage]} for {callback}, got .*checkpoint-4' of one with {written}. Resume it as"
    for result in results:
        assert re.search(why, result[f"refused {name} {stage} {s2ft}"])


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_of_other_groups(results, stage):
    for result in results:
        without, added, by_layer = result[f"groups {stage}"]
        assert "must be layerwise_optimizer(callback) as in the training of the checkpoint" in without
        assert "optimizer has 8 groups, got none. Resume with that line" in without
        assert "optimizer_cls_and_kwargs must be left out as in the training of the checkpoint, got" in added
        assert re.search(
            r"must have the optimizer's groups of this training, \d\d, got 8; group \d+ is that of", by_layer
        )


def test_only_layerwise_optimizer_makes_groups(results):
    # With and without weight decay; the same for three blocks, and the weights outside.
    assert [results[0][way]["groups"] for way in WAYS] == [2, 8] * 3


def _distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)
