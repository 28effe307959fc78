"""S2FTCallback in the trainers of TRL, on the demo model."""

import pytest
import torch
from datasets import Dataset
from s2ft_models import EARLY, INDEXED, PERMUTED, follows, inside, plain
from trainers import same
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_farms import S2FTCallback, S2FTConfig
from hf_farms.demo import demo_model
from hf_farms.s2ft.surgery import selection_of

# What TRL, its dependencies and transformers say of each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

DATA = {
    "SFT": {"text": ["My fellow citizens, we are here"] * 8},
    "DPO": {"prompt": ["My fellow"] * 8, "chosen": [" citizens of"] * 8, "rejected": [" the and"] * 8},
    "GRPO": {"prompt": ["My fellow"] * 8},
}
SPECIAL = {
    "SFT": {"max_length": 32},
    "DPO": {"max_length": 32},
    "GRPO": {"max_completion_length": 8, "num_generations": 2, "beta": 0.1},
}


def build(kind, folder, callback, *, early=True, dtype=torch.float32, **options):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    args = getattr(trl, f"{kind}Config")(
        **{
            "output_dir": str(folder),
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **SPECIAL[kind],
            **options,
        }
    )
    model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=dtype)
    extra = {"reward_funcs": lengths} if kind == "GRPO" else {}
    run = getattr(trl, f"{kind}Trainer")(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(DATA[kind]),
        processing_class=AutoTokenizer.from_pretrained(demo_model()),
        callbacks=[callback] if early else [],
        **extra,
    )
    if not early:
        run.add_callback(callback)
    return run


def lengths(completions, **_):
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO"])
def test_only_the_selection_is_trained(kind, tmp_path):
    dtype = torch.bfloat16
    run = build(kind, tmp_path, S2FTCallback(PERMUTED), dtype=dtype)
    before = plain(AutoModelForCausalLM.from_pretrained(demo_model(), dtype=dtype))
    run.train()
    assert follows(run.model)
    after, trained = plain(run.model), inside(before, selection_of(run.model))
    assert all(torch.equal(after[name][~trained[name]], before[name][~trained[name]]) for name in after)
    assert all((after[name] != before[name]).any() for name in after if trained[name].any())
    run.save_model(str(tmp_path / "end"))
    assert same(after, plain(AutoModelForCausalLM.from_pretrained(tmp_path / "end", dtype=dtype)))


@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO"])
def test_added_late_it_trains_the_same(kind, tmp_path):
    runs = [build(kind, tmp_path, S2FTCallback(INDEXED), early=early) for early in (True, False)]
    for run in runs:
        torch.manual_seed(0)
        run.train()
    assert same(*(plain(run.model) for run in runs))


@pytest.mark.parametrize("kind", ["DPO", "GRPO"])
@EARLY
def test_the_reference_stays_the_base_model(kind, early, tmp_path):
    run = build(kind, tmp_path, S2FTCallback(INDEXED), early=early)
    run.train()
    base = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32)
    assert same(plain(base), plain(run.ref_model))
    assert type(run.ref_model.model.layers[0].mlp.down_proj) is torch.nn.Linear


def test_generation_is_with_the_current_weights(tmp_path):
    """Under plain names, which is where a sync of weights reads them."""
    run = build("GRPO", tmp_path, S2FTCallback(INDEXED))
    generate, seen = run.model.generate, []

    def watch(*args, **kwargs):
        seen.append({name: parameter.detach().clone() for name, parameter in run.model.named_parameters()})
        return generate(*args, **kwargs)

    run.model.generate = watch
    run.train()
    names = [name for name, _ in AutoModelForCausalLM.from_pretrained(demo_model()).named_parameters()]
    assert all(set(names) <= found.keys() for found in seen)
    changing = "model.layers.0.mlp.down_proj"
    channels = list(selection_of(run.model).channels[changing])
    assert all(torch.equal(found[f"{changing}.weight"][:, channels], found[f"{changing}.selected"]) for found in seen)
    assert len({found[f"{changing}.weight"].sum().item() for found in seen}) == len(seen) == 3


SYNC = r"got sync_ref_model=True, which mixes .* by position\. Set sync_ref_model=False"


# Without vLLM, GRPOTrainer itself fails before a callback can be added late.
@pytest.mark.parametrize(
    ("early", "options", "why"),
    [
        (True, {"use_vllm": True}, r"got use_vllm=True, which sends every named parameter .* Set use_vllm=False"),
        (True, {"sync_ref_model": True}, SYNC),
        (False, {"sync_ref_model": True}, SYNC),
    ],
    ids=["vllm", "sync early", "sync late"],
)
def test_what_reads_parameters_by_foreign_names_is_refused(early, options, why, tmp_path):
    def train():
        build("GRPO", tmp_path, S2FTCallback(S2FTConfig(budget=0.1)), early=early, **options).train()

    with pytest.raises(ValueError, match=why):
        train()
