"""Arguments of public functions: wrong types are refused where they enter, in a sentence that says what must be."""

import numpy as np
import pytest
import torch
from models import tiny
from torch import nn

import hf_farms
from hf_farms import (
    FarmsConfig,
    FarmsLRCallback,
    FarmsLRConfig,
    PruneConfig,
    S2FTCallback,
    S2FTConfig,
    allocate_lr,
    allocate_sparsity,
    analyze,
    apply_s2ft,
    layer_spectrum,
    plan_sparsity,
    prune,
    push,
    restore,
    select_channels,
)
from hf_farms.allocation.lr import lr_factors
from hf_farms.errors import DataError, HfFarmsError

IDS = torch.arange(32)[None] % 100
WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
NO_MODEL = r"model must be a model in memory \(torch\.nn\.Module\)"


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (None, r"weight must be a torch.Tensor, got None\. Make one with torch.as_tensor\."),
        ([[1.0]], r"weight must be a torch.Tensor, got \[\[1.0\]\]\."),
        (WEIGHT.numpy(), r"weight must be a torch.Tensor, got an object of class ndarray\."),
        (nn.Linear(8, 8), r"weight must be a torch.Tensor, got Linear\(.*\)\. Pass its weight\."),
        (WEIGHT.to("meta"), "weight must be in memory, got 'a meta tensor'"),
        (WEIGHT.to(torch.float8_e4m3fn), r"weight must be of a float or complex dtype .*, got torch.float8_e4m3fn\."),
        (WEIGHT.to_sparse(), r"weight must be dense, got torch.sparse_coo\. Pass weight.to_dense\(\)\."),
        (torch.ones(8, 8, dtype=torch.long), "weight must be of a float or complex dtype .*, got torch.int64"),
    ],
)
def test_weights(weight, sentence):
    with pytest.raises(ValueError, match=sentence):
        layer_spectrum(weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_weights_of_every_dtype_that_has_a_spectrum_are_measured(dtype):
    assert layer_spectrum(nn.Parameter(WEIGHT.to(dtype))).alpha > 1


class NoModel:
    """Has the length of a model's blocks, and nothing else of them."""

    def __len__(self):
        return 1


@pytest.mark.parametrize("given", [None, 3, nn.Linear, {"a": WEIGHT}, NoModel(), nn.ModuleList, [nn.Linear(2, 2)]])
@pytest.mark.parametrize("call", [analyze, prune, select_channels, apply_s2ft, restore])
def test_models(call, given):
    with pytest.raises(ValueError, match=NO_MODEL):
        call(given)


@pytest.mark.parametrize("call", [select_channels, apply_s2ft, restore])
def test_names_of_models_where_one_in_memory_is_needed(call):
    with pytest.raises(ValueError, match=rf"{NO_MODEL}, got 'demo'\. Load it first"):
        call("demo")


@pytest.mark.parametrize("call", [analyze, prune, select_channels, apply_s2ft])
def test_a_model_without_layers(call):
    with pytest.raises(HfFarmsError, match="model must have blocks with linear layers, got Sequential"):
        call(nn.Sequential())


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda config: layer_spectrum(WEIGHT, config), FarmsConfig),
        (lambda config: analyze(tiny("llama"), config), FarmsConfig),
        (lambda config: prune(tiny("llama"), config, calibration=[IDS]), PruneConfig),
        (lambda config: select_channels(tiny("llama"), config), S2FTConfig),
        (lambda config: apply_s2ft(tiny("llama"), config), S2FTConfig),
        (lambda config: plan_sparsity(analyze(tiny("llama")), config=config), PruneConfig),
        (lambda config: allocate_lr(analyze(tiny("llama")), config=config), FarmsLRConfig),
    ],
)
def test_configs(call, kind):
    other = FarmsLRConfig() if kind is not FarmsLRConfig else FarmsConfig()
    for given in ("x", 3, {"spread": 0.1}, other, kind):
        with pytest.raises(ValueError, match=rf"config must be a {kind.__name__} or None, got "):
            call(given)


def test_callbacks():
    for callback, kind in ((FarmsLRCallback, FarmsLRConfig), (S2FTCallback, S2FTConfig)):
        for given in ("x", 3, FarmsConfig(), kind):
            with pytest.raises(
                ValueError, match=rf"config must be a {kind.__name__} or a mapping of its options, got "
            ):
                callback(given)
        with pytest.raises(ValueError, match=r"config must be a mapping of options of .*, got 'shrinc'\. (Did|It has)"):
            callback({"shrinc": True})
        with pytest.raises(ValueError, match=r"fit must be one of .*, got 'best'"):
            callback({"spectra": {"fit": "best"}})


@pytest.mark.parametrize(
    "call",
    [
        lambda **options: S2FTCallback(**options),
        lambda **options: select_channels(tiny("llama"), **options),
        lambda **options: apply_s2ft(tiny("llama"), **options),
    ],
)
def test_arguments_of_s2ft(call):
    for given in ("x", 3, ["x"], None):
        with pytest.raises(ValueError, match="exclude must be a Selection or a list of them, got "):
            call(exclude=given)
    for given, sentence in ((3, "batches of token ids, got 3"), ("text", "batches of token ids, got 'text'")):
        with pytest.raises(DataError, match=f"calibration must be {sentence}"):
            call(calibration=given)


def test_selections():
    for call in (S2FTCallback, lambda **options: apply_s2ft(tiny("llama"), **options)):
        with pytest.raises(ValueError, match=r"selection must be a Selection or None, got 'x'\."):
            call(selection="x")


BATCHES = [
    ("hello", r"calibration must be batches of token ids, got 'hello'\. Tokenize the text first"),
    (3, r"calibration must be batches of token ids, got 3\."),
    ({"input_ids": IDS}, r"calibration must be a list of batches, got a single mapping\. Put it in a list\."),
    (["a"], r"calibration batches must be .*mappings, as the model takes them, got str in batch 0\. Tokenize"),
    ([[1, 2]], r"calibration batches must be .*mappings, as the model takes them, got list in batch 0\."),
    ([{"input_ids": IDS}, None], r"calibration batches must be .*, got NoneType in batch 1\."),
    ([{"input_ids": IDS - 1}], r"calibration token ids must be at least 0, got -1 in batch 0\. Pad with the pad token"),
    (
        [{"input_ids": IDS + 90}],
        r"calibration token ids must be below 100, got 121\. Use the tokenizer of this model\.",
    ),
    ([{"input_ids": IDS.float()}], r"ids must be a tensor of whole numbers, .* got torch.float32 of shape \(1, 32\)"),
    ([{"input_ids": [[1, 2]]}], r"ids must be a tensor of whole numbers, \(b, n\) or \(n,\), got list in batch 0\."),
    ([{"input_ids": torch.tensor(3)}], r"ids must be a tensor of .* got torch.int64 of shape \(\) in batch 0\."),
    (
        [{"input_ids": IDS, "attention_mask": torch.ones(1, 3)}],
        r"attention_mask must have the shape of input_ids, \(1, 32\), got \(1, 3\) in batch 0\.",
    ),
    (
        [{"input_ids": IDS, "attention_mask": [1] * 32}],
        r"attention_mask must have the shape of input_ids, \(1, 32\), got list in batch 0\.",
    ),
]


@pytest.mark.parametrize(("calibration", "sentence"), BATCHES)
def test_batches(calibration, sentence, model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(DataError, match=sentence):
        prune(model, PruneConfig(allocation="uniform"), calibration=calibration)
    with pytest.raises(DataError, match=sentence):
        select_channels(model, S2FTConfig(budget=0.2, strategy="activation"), calibration=calibration)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_right_batches_are_taken():
    mask = torch.ones_like(IDS)
    for batch in (
        IDS,
        IDS[0],
        {"input_ids": IDS[0], "attention_mask": mask[0]},
        {"input_ids": IDS.int(), "attention_mask": mask.bool()},
    ):
        assert prune(tiny("llama"), PruneConfig(allocation="uniform"), calibration=[batch]).report.sparsity == 0.5


def test_other_arguments_of_analyze(model):
    with pytest.raises(ValueError, match=r"device must be None or a device such as 'cpu' or 'cuda:0', got 'foo'\."):
        analyze(model, device="foo")
    with pytest.raises(ValueError, match=r"outside must be True or False, got 'yes'\."):
        analyze(model, outside="yes")
    assert analyze(model, device=torch.device("cpu")) == analyze(model, device="cpu")


@pytest.mark.parametrize("call", [plan_sparsity, allocate_lr])
def test_reports(call):
    for given in (None, "x", [2.5, 3.0]):
        with pytest.raises(ValueError, match="report must be a SpectralReport, got "):
            call(given)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scores": "23"}, "scores must be a list of numbers, got '23'"),
        ({"scores": None}, "scores must be a list of numbers, got None"),
        ({"scores": ["2", "3"]}, r"scores must be finite, got \['2', '3'\]"),
        ({"sizes": 5}, "sizes must be a list of numbers, got 5"),
        ({"sizes": [1, None]}, r"sizes must be positive, got \[1, None\]"),
        ({"target": "0.5"}, "target must be at least 0 and below 1, got '0.5'"),
        ({"spread": None}, "spread must be at least 0 and below 1, got None"),
        ({"bounds": 0.9}, "bounds must be ordered and between 0 and 1, got 0.9"),
        ({"bounds": (0, "1")}, r"bounds must be ordered and between 0 and 1, got \(0, '1'\)"),
    ],
)
def test_numbers_of_an_allocation(change, sentence):
    options = {"scores": [2.0, 3.0], "sizes": [1, 1], "target": 0.5, "spread": 0.1}
    with pytest.raises(ValueError, match=sentence):
        allocate_sparsity(**{**options, **change})
    expected = allocate_sparsity(**options)
    options |= {"scores": [np.float32(2), np.float64(3)], "sizes": np.array([1, 1]).tolist()}
    assert allocate_sparsity(**options) == expected


def test_numbers_of_learning_rates():
    for given in ("23", None, ["2", "3"], [True, 2.0]):
        with pytest.raises(ValueError, match="alphas must be "):
            lr_factors(given)
    with pytest.raises(ValueError, match=r"scales must be 0 < min_scale <= max_scale, got '1' and 1.5"):
        lr_factors([2.0, 3.0], min_scale="1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"folder": 3}, r"folder must be a path, got 3\."),
        ({"folder": None}, r"folder must be a path, got None\."),
        ({"repo_id": 3}, r"repo_id must be text or None, got 3\."),
        ({"private": "yes"}, r"private must be True or False or None, got 'yes'\."),
        ({"create_pr": "yes"}, r"create_pr must be True or False, got 'yes'\."),
        ({"overwrite": 1}, r"overwrite must be True or False, got 1\."),
        ({"revision": 2}, r"revision must be text or None, got 2\."),
        ({"commit_message": b"x"}, r"commit_message must be text or None, got b'x'\."),
        ({"token": True}, r"token must be text or None, got True\."),
    ],
)
def test_arguments_of_a_push(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        push(**{"folder": "nowhere", **arguments})


def test_arguments_of_the_perplexity(model):
    metric = hf_farms.Perplexity()
    right = {"predictions": ["a b"], "model": model, "tokenizer": lambda text, **options: {"input_ids": [1] * 8}}
    wrong = {
        "model": ("demo", NO_MODEL),
        "tokenizer": ("gpt2", "tokenizer must be the tokenizer of the model, got 'gpt2'"),
        "context_length": (1.5, "context_length must be an integer of at least 2, got 1.5"),
        "max_windows": ("all", "max_windows must be None or a positive integer, got 'all'"),
    }
    for name, (value, sentence) in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            metric.compute(**{**right, "context_length": 4, name: value})
    assert metric.compute(**right, context_length=4)["num_windows"] == 2
