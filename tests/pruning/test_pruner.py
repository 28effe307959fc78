import copy

import pytest
import torch
from families import family_model
from models import FAMILIES, tiny, tiny_bert, tiny_opt
from torch import nn

from hf_farms.config import PruneConfig
from hf_farms.errors import DataError, HfFarmsWarning, ModelError, NoEffectWarning
from hf_farms.pruning.pruner import prune
from hf_farms.spectra.analysis import analyze

UNIFORM = PruneConfig(allocation="uniform", sparsity=0.5)


def linears(model):
    return {n: m for n, m in model.named_modules() if type(m) is nn.Linear and "head" not in n}


def zeros(model):
    return sum(int((m.weight == 0).sum()) for m in linears(model).values())


def size(model):
    return sum(m.weight.numel() for m in linears(model).values())


def slow_wanda(model, batches, sparsity):
    """Whole forward passes of the half-pruned model, one for each block; masks by sorting."""
    for index in range(len(model.model.layers)):
        seen = {}
        block = {n: m for n, m in linears(model).items() if f"layers.{index}." in n}
        handles = [
            m.register_forward_pre_hook(
                lambda m, args, n=n, seen=seen: seen.setdefault(n, []).append(args[0].reshape(-1, args[0].shape[-1]))
            )
            for n, m in block.items()
        ]
        with torch.no_grad():
            for batch in batches:
                model(batch if batch.ndim == 2 else batch[None])
        for handle in handles:
            handle.remove()
        for name, module in block.items():
            scores = module.weight.abs() * torch.cat(seen[name]).norm(dim=0)
            order = scores.argsort(dim=1, stable=True)[:, : int(sparsity * scores.shape[1])]
            module.weight.data.scatter_(1, order, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_equals_the_slow_twin(family, ids):
    model = tiny(family)
    twin = copy.deepcopy(model)
    prune(model, UNIFORM, calibration=ids)
    slow_wanda(twin, ids, 0.5)
    for name, module in linears(model).items():
        assert torch.equal(module.weight == 0, linears(twin)[name].weight == 0), name
        assert torch.equal(module.weight, linears(twin)[name].weight), name


def test_sliding_windows_reach_the_blocks_that_have_them(ids):
    """Blocks get different masks here; one captured for all of them would be wrong."""
    changes = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model = tiny("qwen2", **changes)
    assert len(set(model.config.layer_types)) == 2
    twin = copy.deepcopy(model)
    prune(model, UNIFORM, calibration=ids)
    slow_wanda(twin, ids, 0.5)
    assert all(torch.equal(m.weight, linears(twin)[n].weight) for n, m in linears(model).items())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("allocation", ["uniform", "farms", "alpha"])
@pytest.mark.parametrize("sparsity", [0.001, 0.333, 0.5, 0.97, 0.9999])
def test_the_total_is_met_to_the_weight(method, allocation, sparsity, ids):
    model = tiny("llama")
    spread = {} if allocation == "uniform" else {"spread": 0.3}
    config = PruneConfig(method=method, allocation=allocation, sparsity=sparsity, **spread)
    report = prune(model, config, calibration=ids).report
    assert zeros(model) == round(sparsity * size(model))
    assert sum(layer.num_zeros for block in report.blocks for layer in block.layers) == zeros(model)
    assert report.sparsity == zeros(model) / size(model)
    assert report.num_parameters == sum(p.numel() for p in model.parameters())
    assert report.parameter_sparsity == sum(int((p == 0).sum()) for p in model.parameters()) / report.num_parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype_keeps_its_weights(dtype, ids):
    model = tiny("llama", dtype=dtype)
    before = {n: m.weight.clone() for n, m in linears(model).items()}
    report = prune(model, PruneConfig(sparsity=0.4), calibration=ids).report
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert report.sparsity == pytest.approx(0.4, abs=1e-4)
    for name, module in linears(model).items():
        kept = module.weight != 0
        assert module.weight.dtype == dtype
        assert torch.equal(module.weight[kept], before[name][kept])


def test_magnitude_removes_the_smallest_of_every_row(llama):
    before = {n: m.weight.clone() for n, m in linears(llama).items()}
    prune(llama, PruneConfig(method="magnitude", allocation="uniform", sparsity=0.25))
    for name, module in linears(llama).items():
        kept = module.weight != 0
        assert (kept.sum(dim=1) == kept.shape[1] * 3 // 4).all()
        largest_gone = before[name].abs().masked_fill(kept, 0).amax(dim=1)
        assert (largest_gone <= before[name].abs().masked_fill(~kept, 9).amin(dim=1)).all()


def test_embeddings_norms_and_head_are_left_alone(ids):
    model = tiny("llama", tie_word_embeddings=False)
    others = {
        n: p.clone() for n, p in model.named_parameters() if not any(n.startswith(layer) for layer in linears(model))
    }
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= set(others)
    prune(model, PruneConfig(sparsity=0.9), calibration=ids)
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in others.items())


def test_farms_prunes_blocks_by_their_alpha(ids, llama):
    spectra = analyze(llama)
    report = prune(llama, PruneConfig(shrink=False, spread=0.4), calibration=ids, spectra=spectra).report
    by_alpha = sorted(range(3), key=lambda i: spectra.blocks[i].alpha)
    assert sorted(range(3), key=lambda i: report.blocks[i].sparsity) == by_alpha
    assert report.before == spectra


def test_masked_tokens_do_not_count(llama):
    sequence = torch.arange(20)[None]
    padded = torch.cat([sequence, torch.zeros(1, 12, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones(1, 20, dtype=torch.long), torch.zeros(1, 12, dtype=torch.long)], dim=1)
    twin = copy.deepcopy(llama)
    prune(llama, UNIFORM, calibration=[sequence])
    report = prune(twin, UNIFORM, calibration=[{"input_ids": padded, "attention_mask": mask}]).report
    assert report.calibration.num_tokens == 20
    assert all(torch.equal(m.weight == 0, linears(twin)[n].weight == 0) for n, m in linears(llama).items())


def test_training_mode_and_random_state_survive(ids):
    model = tiny("llama", attention_dropout=0.5).train()
    state = torch.get_rng_state()
    prune(model, UNIFORM, calibration=ids)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all("forward" not in vars(block) for block in model.model.layers)


def test_an_unknown_architecture_is_pruned_by_its_module_tree(ids):
    model = tiny_opt()
    model.config.model_type = "unheard_of"
    with pytest.warns(
        HfFarmsWarning, match=r"No layout is known for OPTForCausalLM \(unheard_of\); .* 2 blocks at 'model.decoder.lay"
    ):
        report = prune(model, PruneConfig(sparsity=0.3), calibration=ids).report
    assert report.sparsity == pytest.approx(0.3, abs=1e-4)


def test_an_encoder_is_pruned_too():
    report = prune(tiny_bert(), PruneConfig(method="magnitude")).report
    assert report.sparsity == 0.5
    assert len(report.blocks) == 3


def test_nothing_to_remove_is_a_warning(llama, ids):
    with pytest.warns(NoEffectWarning, match="sparsity is 0"):
        prune(llama, PruneConfig(sparsity=0, allocation="uniform"), calibration=ids)
    assert zeros(llama) == 0


def test_a_model_that_is_sparse_already_is_said_to_be(llama):
    config = PruneConfig(method="magnitude", allocation="uniform")
    report = prune(llama, config).report
    assert not any("were zero before" in note for note in report.notes)
    with pytest.warns(HfFarmsWarning, match=r"50\.00% of the weights of the pruned layers were zero before"):
        again = prune(llama, config).report
    assert any("were zero before" in note for note in again.notes)


def test_finished_blocks_are_committed_in_order(llama, ids):
    from hf_farms.blocks import ModelBlockSource

    class Results:
        def __init__(self):
            self.written = []

        def record(self, index):
            return None

        def write(self, index, name, state, record):
            self.written.append((index, name, int((state["mlp.up_proj.weight"] == 0).sum()), record["sparsity"]))

    results = Results()
    prune(ModelBlockSource(llama, results=results), UNIFORM, calibration=ids)
    assert results.written == [(i, f"model.layers.{i}", 48 * 32 // 2, 0.5) for i in range(3)]


def test_progress_names_the_stages(llama, ids):
    seen = []
    prune(llama, calibration=ids, progress=lambda *step: seen.append(step))
    assert [s for s in seen if s[0] == "prune"] == [("prune", i, 3) for i in range(4)]
    assert {s[0] for s in seen} == {"analyze", "capture", "prune"}


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "calibration must be given for method 'wanda'"),
        ([], "calibration must hold at least one token"),
        ([torch.zeros(1, 0, dtype=torch.long)], "calibration must hold at least one token"),
        ([torch.tensor([[5, 100]])], "calibration token ids must be below 100, got 100"),
    ],
)
def test_useless_calibration_is_refused_before_anything_changes(llama, calibration, message):
    with pytest.raises(DataError, match=message):
        prune(llama, calibration=calibration)
    assert zeros(llama) == 0


def test_nan_in_weights_names_the_tensor(llama, ids):
    llama.model.layers[1].self_attn.q_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or infinity in model\.layers\.1\.self_attn\.q_proj\.weight"):
        prune(llama, calibration=ids)


def test_nan_in_activations_names_the_layer(llama, ids):
    llama.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(
        ModelError, match=r"activations must be finite, .* at the input of model\.layers\.1\.self_attn\.q_proj"
    ):
        prune(llama, UNIFORM, calibration=ids)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match=r"model must have blocks with linear layers, got Linear"):
        prune(nn.Linear(4, 4), PruneConfig(method="magnitude"))


@pytest.mark.filterwarnings("ignore:.* layers are smaller than windows")
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "falcon"])
def test_fused_weights_are_pruned_layer_by_layer(name, ids):
    model = family_model(name)
    report = prune(model, PruneConfig(sparsity=0.4), calibration=ids).report
    layers = {layer.name.rsplit(".", 1)[-1]: layer for layer in report.blocks[0].layers}
    assert report.sparsity == pytest.approx(0.4, abs=1e-4)
    for role in "qkv":
        assert layers[role].num_zeros / layers[role].num_weights == pytest.approx(report.blocks[0].target, abs=0.01)


def test_routers_are_left_alone(ids):
    model = family_model("llama")
    for layer in model.model.layers:
        layer.mlp.router = nn.Linear(32, 4)
    prune(model, UNIFORM, calibration=ids)
    assert all((layer.mlp.router.weight != 0).all() for layer in model.model.layers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "must be linear, got a convolution"),
    ],
)
def test_what_is_not_linear_is_refused_before_work(name, message):
    model = family_model(name)
    with pytest.raises(ModelError, match=message):
        prune(model, PruneConfig(method="magnitude"))
