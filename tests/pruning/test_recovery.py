import copy
import math
from dataclasses import replace

import pytest
import torch
from families import family_model
from models import tiny
from torch import nn

from hf_farms.config import PruneConfig
from hf_farms.errors import DataError, ModelError
from hf_farms.loading.opening import load_model
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.pruning import submodule_calls
from hf_farms.pruning.pruner import prune
from hf_farms.pruning.submodule_calls import fit_dtype

UNIFORM = {"allocation": "uniform", "sparsity": 0.5}
RECOVER = PruneConfig(**UNIFORM, recover="submodule")
DTYPES_OF_FITS = (
    (torch.float32, True, torch.float32),
    (torch.float16, True, torch.float32),
    (torch.bfloat16, True, torch.bfloat16),
    (torch.bfloat16, False, torch.float32),
)


def masks(model):
    return {name: parameter == 0 for name, parameter in model.named_parameters()}


def parts(report):
    return [part for block in report.blocks for part in block.recovery]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_zeros_are_those_of_the_method_in_the_first_block(method, pattern, many):
    """Later blocks see other inputs than without recovery."""
    model = tiny("llama", num_hidden_layers=1)
    twin = copy.deepcopy(model)
    config = PruneConfig(**UNIFORM, method=method, pattern=pattern, recover="submodule")
    report = prune(model, config, calibration=many).report
    prune(twin, PruneConfig(**UNIFORM, method=method, pattern=pattern), calibration=list(many[0][:, None]))
    expected = masks(twin)
    assert all(torch.equal(mask, expected[name]) for name, mask in masks(model).items())
    assert [part.name for part in parts(report)] == ["model.layers.0.self_attn", "model.layers.0.mlp"]
    assert any(part.accepted for part in parts(report))
    for part in parts(report):
        assert part.final_error <= part.error_before
        assert part.accepted == (part.error < part.error_before)
        weights = [model.get_submodule(part.name), twin.get_submodule(part.name)]
        equal = all(torch.equal(a, b) for a, b in zip(*(w.parameters() for w in weights), strict=True))
        assert equal != part.accepted


def seen(model, module, batch):
    """Inputs and outputs of a module for each sequence."""
    calls = []
    handle = module.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    with torch.no_grad():
        for row in batch:
            model(row[None])
    handle.remove()
    return zip(*calls, strict=True)


def slow_fit(pruned, inputs, targets, config):
    """Fit a copy of a module by autograd on its own parameters."""
    fitted = copy.deepcopy(pruned)
    weights = list(fitted.parameters())
    zeros = [weight == 0 for weight in weights]
    rows = torch.cat([target.flatten(0, 1) for target in targets])
    scale = (rows - rows.mean(dim=0)).square().mean()
    sizes = [weight[~zero].square().mean().sqrt().item() for weight, zero in zip(weights, zeros, strict=True)]
    optimizer = torch.optim.Adam([{"params": [weight]} for weight in weights], eps=1e-15)
    train = [i for i in range(len(inputs)) if i % 8 != 7] * config.passes_over(len(inputs))
    for step, i in enumerate(train):
        for group, size in zip(optimizer.param_groups, sizes, strict=True):
            group["lr"] = config.effective_rate * size * (1 + math.cos(math.pi * step / len(train))) / 2
        optimizer.zero_grad()
        ((fitted(inputs[i]) - targets[i]).square().mean() / scale).backward()
        for weight, zero in zip(weights, zeros, strict=True):
            weight.grad[zero] = 0
        optimizer.step()
    return fitted


def test_the_fit_equals_its_slow_twin(many):
    """The MLP of the only block leads from the stream behind the recovered attention to that of the dense model."""
    model = tiny("llama", num_hidden_layers=1)
    dense, method_only = copy.deepcopy(model), copy.deepcopy(model)
    prune(method_only, PruneConfig(**UNIFORM), calibration=list(many[0][:, None]))
    prune(model, RECOVER, calibration=many)
    block = model.model.layers[0]
    _, expected = seen(dense, dense.model.layers[0], many[0])
    _, outputs = seen(model, block, many[0])
    inputs, added = seen(model, block.mlp, many[0])
    targets = [after - (output - mlp) for after, output, mlp in zip(expected, outputs, added, strict=True)]
    twin = slow_fit(method_only.model.layers[0].mlp, inputs, targets, RECOVER)
    for weight, other in zip(block.mlp.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "names"),
    {
        "gpt2": ["attn", "mlp"],
        "gpt_neox": ["attention", "mlp"],
        "opt": [""],
        "bert": [""],
        "mixtral": ["self_attn", "mlp.experts"],
        "deepseek_v2": ["self_attn", "mlp"],
        "mamba": ["mixer"],
    }.items(),
)
@pytest.mark.filterwarnings("ignore:2 layers, first backbone.*got no visible inputs:hf_farms.errors.HfFarmsWarning")
def test_parts_of_each_family(family, names, many):
    model = family_model(family)
    report = prune(model, RECOVER, calibration=many).report
    block = report.blocks[-1]
    assert [part.name.removeprefix(block.name).removeprefix(".") for part in block.recovery] == names
    assert report.sparsity == pytest.approx(0.5, abs=1e-4)
    zeros = sum(layer.num_zeros for b in report.blocks for layer in b.layers)
    assert sum(int(mask.sum()) for mask in masks(model).values()) >= zeros
    assert any("as a whole" in note for note in report.notes) == (names == [""])


def written(source, folder, *, progress=None):
    folder.mkdir(exist_ok=True)
    writer = CheckpointWriter(source.model, folder, len(source), records=folder / "records")
    source.attach(writer, keep_dense=True)
    ids = [torch.randint(0, 100, (8, 24), generator=torch.Generator().manual_seed(1))]
    selection = list(torch.randint(0, 100, (6, 24), generator=torch.Generator().manual_seed(4)))
    report = prune(
        source, RECOVER, calibration=ids, selection=selection, activations=folder / "activations", progress=progress
    ).report
    assert report.acceptance.num_sequences == 3
    return report, {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_streamed_resumed_and_in_memory_give_the_same_bytes(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    whole, streamed, killed = (load_model(str(tmp_path / "model"), tokenizer=False, stream=s).source for s in (0, 1, 1))
    expected = written(whole, tmp_path / "whole")
    assert expected[1]
    assert written(streamed, tmp_path / "streamed") == expected

    def stop(stage, done, total):
        if stage == "prune" and done == 2:
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        written(killed, tmp_path / "killed", progress=stop)
    again = load_model(str(tmp_path / "model"), tokenizer=False, stream=False).source
    assert written(again, tmp_path / "killed") == expected


def drift(model, dense, batch):
    return sum(float((model(row[None]).logits - dense(row[None]).logits).square().mean()) for row in batch)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_the_outputs_come_closer_to_those_of_the_dense_model(family, many):
    """On other sequences; attention and MLP of gpt_neox run side by side, gemma2 has norms behind them."""
    models = [family_model(family).eval() for _ in range(3)]
    prune(models[0], RECOVER, calibration=many)
    prune(models[1], PruneConfig(**UNIFORM), calibration=many)
    other = torch.randint(0, 100, (4, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert drift(models[0], models[2], other) < 0.9 * drift(models[1], models[2], other)


def test_dense_blocks_must_be_kept_for_a_recovery_that_goes_on(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    source = load_model(str(tmp_path / "model"), tokenizer=False, stream=False).source
    written(source, tmp_path / "out")
    again = load_model(str(tmp_path / "model"), tokenizer=False, stream=False).source
    again.attach(CheckpointWriter(again.model, tmp_path / "out", len(again), records=tmp_path / "out" / "records"))
    with pytest.raises(ValueError, match="results must be attached with keep_dense=True"):
        again.open_dense(1)


def test_weights_are_kept_where_the_error_does_not_fall(many):
    model = tiny("llama")
    twin = copy.deepcopy(model)
    config = PruneConfig(**UNIFORM, recover="submodule", recover_rate=1.0, recover_passes=1)
    report = prune(model, config, calibration=many).report
    prune(twin, PruneConfig(**UNIFORM), calibration=list(many[0][:, None]))
    assert not any(part.accepted for part in parts(report))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert any("did not lower the error of 6 of 6 submodules" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_keep_their_dtype(dtype, many):
    model = tiny("llama", num_hidden_layers=1, dtype=dtype)
    report = prune(model, RECOVER, calibration=many).report
    assert all(part.accepted for part in parts(report))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    linear = [m.weight for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    assert sum(int((w == 0).sum()) for w in linear) == sum(w.numel() for w in linear) // 2


@pytest.mark.parametrize(("of_model", "has_units", "expected"), DTYPES_OF_FITS)
def test_the_dtype_of_a_fit(of_model, has_units, expected, monkeypatch):
    monkeypatch.setattr(submodule_calls, "_cpu_has_bfloat16", lambda: has_units)
    assert fit_dtype(nn.Linear(2, 2).to(of_model)) == expected


def test_modules_with_float32_parameters_are_fitted_in_float32(monkeypatch):
    monkeypatch.setattr(submodule_calls, "_cpu_has_bfloat16", lambda: True)
    module = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.LayerNorm(2))
    assert fit_dtype(module) == torch.float32


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_fit_in_bfloat16_comes_as_close_as_one_in_float32(family, many, monkeypatch):
    errors = []
    for has_units in (False, True):
        monkeypatch.setattr(submodule_calls, "_cpu_has_bfloat16", lambda has_units=has_units: has_units)
        report = prune(family_model(family).bfloat16(), RECOVER, calibration=many).report
        errors.append([part.error for part in parts(report)])
    assert errors[0] != errors[1]
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


def test_outputs_that_are_not_finite_are_refused(many):
    model = tiny("llama", num_hidden_layers=1)
    mlp = model.model.layers[0].mlp
    for layer, factor in ((mlp.gate_proj, 1e15), (mlp.up_proj, 1e15), (mlp.down_proj, 1e25)):
        layer.weight.data *= factor
    with pytest.raises(ModelError, match=r"outputs must be finite to be recovered, got NaN or infinity in .*mlp"):
        prune(model, replace(RECOVER, method="magnitude"), calibration=many)


def test_padding_is_not_fitted(many):
    ids, mask = many[0], torch.ones_like(many[0])
    mask[:, 30:] = 0
    models = [tiny("llama"), tiny("llama")]
    for model, pad in zip(models, (3, 77), strict=True):
        batch = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
        prune(model, RECOVER, calibration=[batch])
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_a_single_sequence_is_fitted_and_said(many):
    with pytest.warns(UserWarning, match="calibration should have at least 2 sequences"):
        report = prune(tiny("llama"), RECOVER, calibration=[many[0][:1]]).report
    assert any(part.accepted for part in parts(report))


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_calibration_data_must_be_given(method):
    with pytest.raises(
        DataError, match=r"calibration must be given for (method|recover) '(wanda|submodule)', got None"
    ):
        prune(tiny("llama"), PruneConfig(**UNIFORM, method=method, recover="submodule"))
