"""S2FT and KeepZerosCallback under FSDP2, in real Trainers of several processes, and their checkpoints."""

import re

import pytest
import torch
from fsdp2 import NEEDS_FSDP2, same_state
from launch import run_script
from models import tiny
from s2ft_models import trainer
from safetensors.torch import load_file
from trainers import pruned, same, weights

from hf_farms import KeepZerosCallback, S2FTAdapter, S2FTCallback, S2FTConfig

pytestmark = NEEDS_FSDP2

CONFIG = S2FTConfig(budget=0.1, roles=("q", "o", "up", "down"))

# The same batches of six samples, however many processes there are. Checkpoints are those of a model in bfloat16, whose
# weights do not hold what the slices do.
COMMON = """
import shutil, sys, warnings
import torch
from fsdp2 import *
from models import tiny
from s2ft_models import trainer
from trainers import pruned
from hf_farms import FarmsLRCallback, FarmsLRConfig, KeepZerosCallback, S2FTAdapter, S2FTCallback, S2FTConfig
folder, saved = sys.argv[1], sys.argv[-1]
CONFIG = S2FTConfig(budget=0.1, roles=("q", "o", "up", "down"))
SGD = {"optim": "sgd", "learning_rate": 1.0}
KIND = {"sharded": "SHARDED_STATE_DICT", "full": "FULL_STATE_DICT"}
warnings.filterwarnings("ignore", ".*FSDP upcast.*")

def train(name, *, model=None, resume=None, fsdp=None, begun=None, callbacks=None, **options):
    callbacks = [S2FTCallback(CONFIG)] if callbacks is None else callbacks
    options = {"per_device_train_batch_size": 6 // COUNT, "max_steps": 8, "save_steps": 4, **options}
    model = model or tiny("llama", dtype=torch.bfloat16)
    run = trainer(f"{folder}/{name}", model=model, callbacks=callbacks, **options)
    told_of_fsdp2(run, **(fsdp or {}))
    if begun is not None:
        run.add_callback(begun.of(run))
    run.train(resume_from_checkpoint=resume)
    return run

result = {}
"""

TWO = """
from pathlib import Path
# Checkpoints of other engines: of DDP, and the files of one of DeepSpeed.
options = {"per_device_train_batch_size": 3, "max_steps": 1, "save_steps": 1, "save_strategy": "steps"}
trainer(f"{folder}/ddp", model=tiny("llama"), callbacks=[S2FTCallback(CONFIG)], **options).train()
for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
    Path(f"{folder}/zero/checkpoint-1/global_step1/{name}").mkdir(parents=True, exist_ok=True)
shutil.copy(f"{folder}/ddp/checkpoint-1/trainer_state.json", f"{folder}/zero/checkpoint-1")
torch.distributed.barrier()
result["refused"] = {}
for callback in (S2FTCallback(CONFIG), FarmsLRCallback(FarmsLRConfig(start=0))):
    for name in ("ddp", "zero"):
        try:
            train("refused", resume=f"{folder}/{name}/checkpoint-1", callbacks=[callback])
        except ValueError as error:
            result["refused"][f"{type(callback).__name__} {name}"] = str(error)

for name, kind in KIND.items():
    fsdp, begun = {"state_dict_type": kind}, AtTheStart()
    run = train(name, fsdp=fsdp, save_strategy="steps")
    again = train(f"{name}-again", fsdp=fsdp, resume=f"{folder}/{name}/checkpoint-4", begun=begun)
    result[name], result[f"{name}-again"] = trained_state(run), trained_state(again)
    result[f"{name}-begun"] = begun.state
    if name == "full":
        run.save_model(f"{folder}/saved")
adapter = S2FTAdapter.from_model(run.model)
if RANK == 0:
    adapter.save_pretrained(f"{folder}/adapter")

model = tiny("llama", dtype=torch.bfloat16)
if RANK > 0:  # from_pretrained reads no weights there
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
result["lazy"] = trained_state(train("lazy", model=model, fsdp={"cpu_ram_efficient_loading": True}))
# An evaluation leaves whole weights in the modules, in the dtype of the computation.
options = {"activation_checkpointing": True, "reshard_after_forward": False}
result["options"] = trained_state(train("options", fsdp=options, eval_strategy="steps", eval_steps=4))

# accelerate's own policy for bf16.
plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
plugin.set_mixed_precision("bf16")
options = {"mixed_precision_policy": plugin.mixed_precision_policy, "reshard_after_forward": False}
run = train("bf16", model=tiny("llama"), fsdp=options, bf16=True, eval_strategy="steps", eval_steps=4, **SGD)
result["bf16"] = whole(run.model)

result["s2ft"] = whole(train("s2ft", model=tiny("llama")).model)
result["keep"] = whole(train("keep", model=pruned(), callbacks=[KeepZerosCallback()]).model)
callbacks = [S2FTCallback(CONFIG), KeepZerosCallback()]
result["keep-s2ft"] = whole(train("keep-s2ft", model=pruned(), callbacks=callbacks).model)
torch.save(result, f"{folder}/{RANK}.pt")
"""

OTHER = """
name, begun = sys.argv[2], AtTheStart()
fsdp = {"state_dict_type": KIND[name]}
run = train("again", fsdp=fsdp, resume=f"{saved}/{name}/checkpoint-4", begun=begun)
result["end"], result["begun"] = trained_state(run), begun.state
if RANK == COUNT - 1:
    torch.save(result, f"{folder}/{COUNT}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_script(COMMON + TWO, folder)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def distance(a, b):
    return max(distance_of(a[name], b[name]) for name in a)


def distance_of(a, b):
    return (a.double() - b.double()).abs().max().item()


def one_process(folder, *callbacks, model, **options):
    options = {"per_device_train_batch_size": 6, "max_steps": 8, **options}
    run = trainer(folder, model=model, callbacks=callbacks, **options)
    run.train()
    return weights(run.model)


def test_two_processes_equal_one(two, tmp_path):
    """In an unmodified Trainer, on accelerate's path."""
    one = one_process(tmp_path, S2FTCallback(CONFIG), model=tiny("llama"))
    assert distance(one, two[0]["s2ft"]) < 1e-5
    assert same(two[0]["s2ft"], two[1]["s2ft"])
    start = weights(tiny("llama"))
    assert distance(start, one) > 1e-2


def test_mixed_precision_in_bf16(two, tmp_path):
    """Gradients are rounded as in one process; slices and weights are not."""
    options = {"optim": "sgd", "learning_rate": 1.0, "bf16": True}
    one = one_process(tmp_path, S2FTCallback(CONFIG), model=tiny("llama"), **options)
    trained = two[0]["bf16"]
    start = {name: tensor for name, tensor in weights(tiny("llama")).items() if distance_of(tensor, one[name])}
    assert len(start) == 12
    for name, before in start.items():
        assert distance_of(trained[name], one[name]) < 0.1 * distance_of(before, one[name])
    slices = {name: tensor for name, tensor in trained.items() if name.endswith("selected")}
    for name, tensor in slices.items():
        assert tensor.dtype == trained[name.replace("selected", "weight")].dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())
        assert torch.isin(tensor, trained[name.replace("selected", "weight")]).all()


@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_resuming_is_exact(two, kind):
    for result in two:
        assert same_state(result[kind], result[f"{kind}-again"])
        assert same_state(result["sharded"], result[kind])
    assert same_state(two[0][kind], two[1][kind])


@pytest.mark.parametrize(("processes", "kind"), [(1, "full"), (3, "sharded")])
def test_resuming_on_another_number_of_processes(folder, two, processes, kind, tmp_path):
    run_script(COMMON + OTHER, tmp_path, kind, folder, processes=processes)
    result = torch.load(tmp_path / f"{processes}.pt")
    # Slices in float32, the states of the optimizer, the base of the adapter: as they were saved, to the bit.
    assert same_state(result["begun"], two[0][f"{kind}-begun"])
    slices = {name: tensor for name, tensor in two[0][kind]["weights"].items() if name.endswith("selected")}
    assert distance(slices, result["begun"]["weights"]) > 5e-3
    assert distance(slices, result["end"]["weights"]) < 1e-3
    assert same(result["end"]["base"], two[0][kind]["base"])


def test_weights_that_the_first_process_only_has_loaded(two):
    for result in two:
        assert same_state(result["lazy"], result["sharded"])


def test_checkpointing_and_weights_that_stay_whole_after_the_forward_pass(two):
    for result in two:
        assert same_state(result["options"], result["sharded"])


def test_full_checkpoints_are_those_of_the_plain_model(folder, two):
    plain = tiny("llama", dtype=torch.bfloat16).state_dict()
    trained = two[0]["full"]["weights"]
    for path in ("full/checkpoint-8", "saved"):
        stored = load_file(folder / path / "model.safetensors")
        assert stored.keys() == plain.keys()
        assert same(stored, trained)


@pytest.mark.parametrize("path", ["adapter", "sharded", "sharded/checkpoint-8", "full/checkpoint-8"])
def test_adapters_of_sharded_models(folder, two, path):
    base = tiny("llama", dtype=torch.bfloat16)
    adapter = S2FTAdapter.from_pretrained(folder / path)
    adapter.merge(base)
    assert same(weights(base), two[0]["full"]["weights"])


@pytest.mark.parametrize("callback", ["S2FTCallback", "FarmsLRCallback"])
@pytest.mark.parametrize(("name", "written"), [("ddp", "no sharding"), ("zero", "DeepSpeed ZeRO-1 or 2")])
def test_a_checkpoint_of_another_engine_under_fsdp2(two, callback, name, written):
    why = f"must be a checkpoint of a training with FSDP for {callback}, got .*checkpoint-1' of one with {written}"
    for result in two:
        assert re.search(why, result["refused"][f"{callback} {name}"])


def test_a_checkpoint_of_fsdp2_in_one_process(folder, tmp_path):
    run = trainer(tmp_path, model=tiny("llama"), callbacks=[S2FTCallback(CONFIG)])
    with pytest.raises(ValueError, match="is only supported when using PyTorch FSDP"):
        run.train(resume_from_checkpoint=str(folder / "sharded" / "checkpoint-4"))


@pytest.mark.parametrize("name", ["keep", "keep-s2ft"])
def test_zeros_are_kept(two, name, tmp_path):
    start = weights(pruned())
    callbacks = [S2FTCallback(CONFIG)] if name == "keep-s2ft" else []
    one = one_process(tmp_path, *callbacks, KeepZerosCallback(), model=pruned())
    trained = two[0][name]
    for weight, before in start.items():
        if ".layers." in weight and before.ndim == 2:
            assert (before == 0).any()
            assert not trained[weight][before == 0].any()
    assert distance(one, trained) < 1e-4
    assert distance(start, trained) > 1e-2
