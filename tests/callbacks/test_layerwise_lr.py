"""LayerwiseLRCallback: factors of the user, by patterns or functions, in a real Trainer."""

import json
import math
import warnings

import pytest
import torch
import transformers
from hf_farms_cards import render_card
from models import tiny
from trainers import FAST, Tokens, arguments, same, trainer, weights
from transformers import Trainer

from hf_farms import FarmsLRCallback, LayerwiseLRCallback, LayerwiseLRConfig, layerwise_decay
from hf_farms.callbacks.factors import parameters_by_pattern
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.errors import HfFarmsWarning, NoEffectWarning
from hf_farms.reports import REPORT_NAME, TrainReport
from hf_farms.reports.training import LayerwiseLRRecord

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")

FIXED = {r"\.layers\.0\.": 0.25, "embed_tokens": 0.0, r"\.layers\.[12]\..*mlp": 1.5}
OPTIONS = {"optim": "adamw_torch_fused", "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_steps": 4}


def by_hand(folder, factors, **options):
    """A training with real parameter groups; factors are functions of the step, by pattern, None for the rest."""
    model = tiny("llama")
    keys = parameters_by_pattern(model, [pattern for pattern in factors if pattern])
    groups = [[p for p in model.parameters() if (*keys[p], None)[0] == pattern] for pattern in factors]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-2, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, list(factors.values()))
    args = arguments(folder, **OPTIONS | options)
    run = Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, schedule))
    run.train()
    return weights(model)


def with_callback(folder, factors, config=None, **options):
    callback = LayerwiseLRCallback(factors, config)
    run = trainer(folder, callback, model=tiny("llama"), **OPTIONS | options)
    run.train()
    return run, callback


def test_fixed_factors_are_those_of_real_groups_bit_by_bit(tmp_path):
    run, callback = with_callback(tmp_path / "a", FIXED, gradient_accumulation_steps=2)
    constant = {pattern: lambda step, factor=factor: factor for pattern, factor in {**FIXED, None: 1.0}.items()}
    assert same(weights(run.model), by_hand(tmp_path / "b", constant, gradient_accumulation_steps=2))
    assert len(run.optimizer.param_groups) == 2
    before, after = tiny("llama").model.embed_tokens.weight, run.model.model.embed_tokens.weight
    assert torch.equal(before, after)
    assert callback.memory["factors"] == FIXED


SCHEDULED = {r"\.layers\.0\.": lambda progress: 1 / (1 + progress.step), "norm": 2.0}
WHOLE = {
    "values are functions": SCHEDULED,
    "one function": lambda progress: {r"\.layers\.0\.": 1 / (1 + progress.step), "norm": 2.0},
}


@pytest.mark.parametrize("form", WHOLE)
def test_scheduled_factors_are_those_of_real_groups_bit_by_bit(form, tmp_path):
    run, _ = with_callback(tmp_path / "a", WHOLE[form])
    factors = {r"\.layers\.0\.": lambda step: 1 / (1 + step), "norm": lambda step: 2.0, None: lambda step: 1.0}
    assert same(weights(run.model), by_hand(tmp_path / "b", factors))


def test_functions_see_the_progress_and_are_called_as_often_as_asked(tmp_path):
    seen = []

    def factors(progress):
        seen.append((progress.step, progress.fraction, type(progress.model).__name__))
        return {"norm": 0.5}

    with_callback(tmp_path, factors, {"interval": 3}, max_steps=6)
    assert seen == [(0, 0.0, "LlamaForCausalLM"), (3, 0.5, "LlamaForCausalLM")]


def test_resume_is_exact(tmp_path):
    """Also between two calls of a function."""
    options = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
    config = LayerwiseLRConfig(interval=3, quantity="both")
    whole, callback = with_callback(tmp_path, SCHEDULED, config, **options)
    again = LayerwiseLRCallback(SCHEDULED, config)
    resumed = trainer(tmp_path, again, model=tiny("llama"), **OPTIONS | options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(whole.model), weights(resumed.model))
    assert again.memory == callback.memory
    optimizer = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert len(optimizer["param_groups"]) == 2
    changed = trainer(tmp_path, LayerwiseLRCallback({"norm": 0.5}), model=tiny("llama"), **OPTIONS)
    message = r"differ from those of the checkpoint, the new ones count: .*layers.* 1\.0 -> None, 'norm' 2\.0 -> 0\.5\."
    with pytest.warns(HfFarmsWarning, match=message):
        changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_trainer_that_makes_callbacks_anew_gives_fixed_factors_back(tmp_path):
    fixed = LayerwiseLRCallback(FIXED, {"quantity": "both"})
    saved = json.loads(json.dumps(fixed.state()))
    again = LayerwiseLRCallback(**saved["args"])
    assert again.state() == fixed.state()
    saved = json.loads(json.dumps(LayerwiseLRCallback(SCHEDULED).state()))
    with pytest.raises(ValueError, match=r"got None: .* cannot store\. Set restore_callback_states_from_checkpoint=Fa"):
        LayerwiseLRCallback(**saved["args"])


@pytest.mark.parametrize(("quantity", "expected"), [("weight_decay", (1e-2, 0.05)), ("constant_decay", (5e-3, 0.2))])
def test_trackers_get_effective_rates(quantity, expected, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"report_to": ["tensorboard"], "logging_steps": 2, "weight_decay": 0.1}
        run, _ = with_callback(tmp_path, {"q_proj": 0.5}, {"quantity": quantity}, **options)
        (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
        events = EventAccumulator(str(folder)).Reload()
    tags = {tag.rpartition("layerwise_lr/")[2]: tag for tag in events.Tags()["scalars"]}
    for name, value in zip(("learning_rate", "weight_decay"), expected, strict=True):
        found = events.Scalars(tags[f"q_proj/{name}"])
        assert [event.step for event in found] == [2, 4]
        assert [event.value for event in found] == pytest.approx([value] * 2)
    logged = [entry for entry in run.state.log_history if "layerwise_lr/q_proj/factor" in entry]
    assert [(entry["step"], entry["layerwise_lr/q_proj/factor"]) for entry in logged] == [(2, 0.5)]
    assert not any("layerwise_lr/q_proj/learning_rate" in entry for entry in run.state.log_history)
    assert "train_runtime" in run.state.log_history[-1]


def test_layerwise_decay_falls_from_the_head_to_the_embeddings(tmp_path):
    model = tiny("llama")
    factors = layerwise_decay(model, 0.5)
    run, _ = with_callback(tmp_path / "a", factors, max_steps=1)
    keys = parameters_by_pattern(model, list(factors))
    by_name = {name: factors[keys[parameter][0]] for name, parameter in model.named_parameters()}
    assert by_name["model.embed_tokens.weight"] == 0.5**4
    assert [by_name[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert by_name["model.norm.weight"] == by_name["lm_head.weight"] == 1.0
    assert len(by_name) == len(list(model.parameters()))
    # The first step of AdamW moves by the sign of the gradient times the rate.
    before, after = weights(tiny("llama")), weights(run.model)
    moved = {name: (after[name] - before[name]).abs().median().item() for name in before if "norm" not in name}
    # Of the embeddings, those of the tokens in the batch only.
    assert moved.pop("model.embed_tokens.weight") == 0
    for name, distance in moved.items():
        assert distance == pytest.approx(1e-2 * by_name[name], rel=1e-2), name


def test_layerwise_decay_counts_encoder_and_decoder_as_one_stack():
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=50, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8)
    factors = layerwise_decay(transformers.T5ForConditionalGeneration(config), 0.5)
    assert factors["^shared\\.weight$"] == 0.5**5
    assert [factors[f"^{stack}\\.block\\.{i}\\."] for stack in ("encoder", "decoder") for i in (0, 1)] == [
        0.5**4,
        0.5**3,
        0.5**2,
        0.5,
    ]
    assert factors["^encoder\\.final_layer_norm\\.weight$"] == 0.5**3
    assert factors["^decoder\\.final_layer_norm\\.weight$"] == 1.0
    with pytest.raises(ValueError, match="decay must be a positive number, got 0"):
        layerwise_decay(tiny("llama"), 0)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_and_tied_weights_are_found_by_each_of_their_names():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = tiny("llama", tie_word_embeddings=True)
    assert parameters_by_pattern(model, ["lm_head"])[model.model.embed_tokens.weight] == ("lm_head",)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for pattern in (r"^model\.layers\.0\..*lora_A", r"^base_model\..*layers\.0\..*lora_A"):
        assert sum(map(len, parameters_by_pattern(model, [pattern]).values())) == 1


def test_patterns_without_effect_are_named(tmp_path):
    model = tiny("llama")
    model.lm_head.weight.requires_grad_(False)
    callback = LayerwiseLRCallback({"norm": 0.5, "layernorm": 0.1, "classifier": 0.1, "lm_head": 0.1})
    with pytest.warns(NoEffectWarning) as caught:
        trainer(tmp_path, callback, model=model, **OPTIONS | {"max_steps": 1}).train()
    assert [str(warning.message) for warning in caught if warning.category is NoEffectWarning] == [
        "pattern 'classifier' has no effect: it matches no parameter.",
        "pattern 'lm_head' has no effect yet: it matches frozen parameters only.",
    ]
    with pytest.warns(NoEffectWarning, match=r"^`interval` has no effect: it applies to functions, and all factors"):
        LayerwiseLRCallback({"norm": 0.5}, {"interval": 5})
    with pytest.warns(NoEffectWarning, match=r"^LayerwiseLRCallback had no effect: all factors were 1\.$"):
        with_callback(tmp_path, {"norm": 1}, max_steps=1)


def test_weight_decay_that_is_off_cannot_be_scaled(tmp_path):
    message = r"^quantity='weight_decay' has no effect: the optimizer decays no weights\. Set weight_decay in Training"
    with pytest.warns(NoEffectWarning, match=message):
        with_callback(tmp_path, {"norm": 0.5}, {"quantity": "weight_decay"}, max_steps=1)


def test_parameters_that_join_the_optimizer_get_their_factor(tmp_path):
    model, seen = tiny("llama"), []
    model.lm_head.weight.requires_grad_(False)
    callback = LayerwiseLRCallback({"layers": 0.5, "lm_head": 0.25})

    class Unfreeze(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            rates = callback._groups.rates()
            seen.append(rates[model.lm_head.weight].lr if model.lm_head.weight in rates else None)
            if state.global_step == 2:
                unwrap_optimizer(optimizer).param_groups[0]["params"].append(model.lm_head.weight.requires_grad_(True))

    run = trainer(tmp_path, callback, model=model, **OPTIONS)
    run.add_callback(Unfreeze())
    with pytest.warns(NoEffectWarning, match="pattern 'lm_head' has no effect yet: it matches frozen parameters only"):
        run.train()
    assert seen == [None, None, 2.5e-3, 2.5e-3]


BAD = [
    (["norm"], "factors must be a mapping of patterns to factors, or a function that returns one, got "),
    ({"(": 0.5}, r"pattern must be a regular expression on parameter names, got '\(' .* Use re.escape"),
    ({3: 0.5}, "pattern must be a regular expression on parameter names, got 3"),
    ({"norm": -1}, "factor of 'norm' must be at least 0, got -1"),
    ({"norm": math.nan}, "factor of 'norm' must be at least 0, got nan"),
    ({"norm": "1"}, "factor of 'norm' must be at least 0, got '1'"),
]


@pytest.mark.parametrize(("factors", "message"), BAD)
def test_bad_factors_are_refused_at_once(factors, message):
    with pytest.raises(ValueError, match=message):
        LayerwiseLRCallback(factors)


def test_a_factor_of_zero_cannot_divide():
    with pytest.raises(
        ValueError, match="must be a positive number, as quantity 'constant_decay' divides by it, got 0"
    ):
        LayerwiseLRCallback({"norm": 0}, {"quantity": "constant_decay"})


@pytest.mark.parametrize("result", [{"norm": math.inf}, 3])
def test_a_function_that_is_wrong_at_the_start_ends_the_training(result, tmp_path):
    with pytest.raises(ValueError, match=r"factor(s| of 'norm') must be"):
        with_callback(tmp_path, lambda progress: result)


@pytest.mark.parametrize("failure", ["raises", "other patterns"])
def test_a_function_that_fails_later_keeps_the_rates_and_is_told_once(failure, tmp_path):
    def factors(progress):
        if progress.step in (1, 2):
            if failure == "raises":
                raise KeyError("schedule")
            return {"mlp": 3.0}
        return {"norm": 0.5 + progress.step}

    expected = "KeyError: 'schedule'" if failure == "raises" else r"must have the patterns of the start, \['norm'\]"
    with pytest.warns(HfFarmsWarning, match=f"Learning rates stay as they are at step 1: .*{expected}") as caught:
        _, callback = with_callback(tmp_path, factors)
    assert len([w for w in caught if issubclass(w.category, HfFarmsWarning)]) == 1
    assert callback.memory["factors"] == {"norm": 3.5}


def test_the_same_optimizers_are_refused_as_for_farms(tmp_path):
    callback = LayerwiseLRCallback(FIXED)
    run = trainer(tmp_path, callback)
    optimizer, run.args.optim = run.create_optimizer(), "lomo"
    with pytest.raises(ValueError, match="a step of its own for LayerwiseLRCallback, got 'lomo'"):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=optimizer)


def test_one_callback_of_layerwise_rates_only(tmp_path):
    run = trainer(tmp_path, LayerwiseLRCallback(FIXED), **OPTIONS)
    run.add_callback(FarmsLRCallback(FAST))
    with pytest.raises(ValueError, match=r"must hold one FarmsLRCallback, got a LayerwiseLRCallback too\. Remove one"):
        run.train()
    assert not unwrap_optimizer(run.optimizer)._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("factors", "scheduled"), [({r"\.layers\.0\.": 0.25, "a|b": 1.5}, False), ({"norm": lambda progress: 0.5}, True)]
)
@pytest.mark.filterwarnings("ignore:pattern 'a.b' has no effect")
def test_report_and_card_name_the_factors(factors, scheduled, tmp_path):
    config = LayerwiseLRConfig(quantity="weight_decay")
    run, _ = with_callback(tmp_path, factors, config, weight_decay=0.1)
    report = TrainReport.load(tmp_path / REPORT_NAME)
    last = {pattern: 0.5 if callable(factor) else factor for pattern, factor in factors.items()}
    assert report.layerwise_lr == LayerwiseLRRecord(config=config, factors=last, scheduled=scheduled)
    assert report.num_trained == report.num_parameters == sum(p.numel() for p in run.model.parameters())
    card = render_card(report)
    assert "with layer-wise factors on the weight decay" in card
    assert 'LayerwiseLRCallback(factors, LayerwiseLRConfig(quantity="weight_decay"))' in card
    for pattern, factor in last.items():
        name = pattern.replace("|", "\\|")
        assert f"| `{name}` | {factor:.4f} |" in card
    assert ("functions of the progress" in card) == scheduled
    assert "- layerwise-lr\n" in card
    assert "## Citation" not in card
