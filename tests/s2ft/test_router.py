"""AdapterRouter: a batch of several adapters equals the merged models, one by one."""

import copy
import threading

import pytest
import torch
from families import family_model
from models import NEEDS_COMPILE, tiny
from random_adapters import merged, random_adapter, random_patch
from torch import nn

from hf_farms import S2FTConfig, apply_s2ft
from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.patches import S2FTAdapter
from hf_farms.s2ft.adapters.routed_products import group_samples
from hf_farms.s2ft.adapters.router import AdapterRouter

ALL = ("q", "k", "v", "o", "gate", "up", "down")
TOKENS = torch.randint(1, 100, (6, 9), generator=torch.Generator().manual_seed(3))


def one_by_one(model, adapters, ids, **batch):
    """Logits of each sample by a merged copy of the model: the slow twin."""
    copies = {name: merged(copy.deepcopy(model), adapter) for name, adapter in adapters.items()}
    rows = []
    for i, name in enumerate(ids):
        own = {key: value[i : i + 1] for key, value in batch.items()}
        rows.append(copies.get(name, model)(**own).logits)
    return torch.cat(rows)


def three(model, **options):
    """Adapters with other numbers of channels, one of them in the first block only."""
    return {
        "a": random_adapter(model, 1, channels=(2, 3), **options),
        "b": random_adapter(model, 2, channels=(1, 9), **options),
        "c": random_adapter(model, 3, channels=(4, 4), blocks=[0], **options),
    }


def error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "qwen2", "bert"])
@pytest.mark.parametrize("roles", [("o", "down"), ALL], ids=["inputs", "all"])
@pytest.mark.parametrize(
    "ids",
    [
        ["a", "b", "c", "a", "b", "c"],
        ["a", "a", None, "a", "b", None],
        [None, "c", "c", "b", None, None],
        ["a"] * 6,
        ["c", "b", "b", "b", "b", "b"],
    ],
    ids=lambda ids: "".join(name or "-" for name in ids),
)
def test_a_batch_equals_the_merged_models_one_by_one(family, roles, ids):
    model = family_model(family)
    adapters = three(model, roles=roles)
    expected = one_by_one(model, adapters, ids, input_ids=TOKENS)
    plain = model(input_ids=TOKENS).logits
    with AdapterRouter(model, adapters) as router, router.using(ids):
        got = model(input_ids=TOKENS).logits
    assert error(got, expected) < 1e-6
    assert error(got, plain) > 1e-3
    base = [i for i, name in enumerate(ids) if name is None]
    assert error(got[base], plain[base]) < 1e-6 or not base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_its_rounding(dtype):
    model = tiny("llama", dtype=dtype)
    adapters = three(model, roles=ALL)
    ids = ["a", "b", None, "c", "c", "a"]
    expected = one_by_one(model, adapters, ids, input_ids=TOKENS).float()
    with AdapterRouter(model, adapters).using(ids):
        got = model(input_ids=TOKENS).logits
    assert got.dtype == dtype
    assert error(got.float(), expected) < 2 * torch.finfo(dtype).eps


def test_one_weight_may_be_patched_on_either_side(llama):
    name, generator = "model.layers.1.mlp.down_proj.weight", torch.Generator().manual_seed(5)
    options = {"scale": 0.1, "generator": generator}
    patches = {
        "a": random_patch(llama, name, side="inputs", indices=[1, 47], **options),
        "b": random_patch(llama, name, side="outputs", indices=[0, 3, 30], **options),
        "c": random_patch(llama, name, side="outputs", indices=range(32), **options),
    }
    adapters = {name: S2FTAdapter(patches={patch.name: patch}) for name, patch in patches.items()}
    ids = ["b", "a", None, "c", "c", "b"]
    expected = one_by_one(llama, adapters, ids, input_ids=TOKENS)
    with AdapterRouter(llama, adapters).using(ids):
        assert error(llama(input_ids=TOKENS).logits, expected) < 1e-6


def test_a_list_of_adapters_has_its_positions_as_ids(llama):
    adapters = list(three(llama).values())
    router = AdapterRouter(llama, adapters)
    assert router.ids == (0, 1, 2)
    expected = one_by_one(llama, dict(enumerate(adapters)), [2, 0], input_ids=TOKENS[:2])
    with router.using([2, 0]):
        assert error(llama(input_ids=TOKENS[:2]).logits, expected) < 1e-6


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["greedy", "beams", "sequences"],
)
def test_generate_gives_the_tokens_of_the_merged_models(options):
    model = family_model("llama")
    adapters, ids = three(model, scale=0.3, roles=ALL), ["b", None, "a", "c"]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    copies = {name: merged(copy.deepcopy(model), adapter) for name, adapter in adapters.items()} | {None: model}
    expected = torch.cat([copies[name].generate(TOKENS[i : i + 1], **settings) for i, name in enumerate(ids)])
    plain = model.generate(TOKENS[:4], **settings)
    with AdapterRouter(model, adapters) as router, router.using(ids):
        got = model.generate(input_ids=TOKENS[:4], **settings)
    assert torch.equal(got, expected)
    assert not torch.equal(got, plain)


def test_generate_of_an_encoder_and_a_decoder():
    model = family_model("t5")
    adapters, ids = three(model, scale=0.3), ["b", None, "a"]
    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2, "eos_token_id": None, "pad_token_id": 0}
    settings["decoder_start_token_id"] = 0
    copies = {name: merged(copy.deepcopy(model), adapter) for name, adapter in adapters.items()} | {None: model}
    expected = torch.cat([copies[name].generate(TOKENS[i : i + 1], **settings) for i, name in enumerate(ids)])
    with AdapterRouter(model, adapters) as router, router.using(ids):
        assert torch.equal(model.generate(TOKENS[:3], **settings), expected)


def test_the_model_is_as_before_outside_of_using_and_after_remove(llama):
    before, names = {k: v.clone() for k, v in llama.state_dict().items()}, set(vars(llama))
    plain, adapters = llama(input_ids=TOKENS).logits, three(llama)
    router = AdapterRouter(llama, adapters)
    with router.using(["a"] * 6):
        changed = llama(input_ids=TOKENS).logits
        with router.using([None] * 6):
            assert torch.equal(llama(input_ids=TOKENS).logits, plain)
        assert torch.equal(llama(input_ids=TOKENS).logits, changed)
    assert torch.equal(llama(input_ids=TOKENS).logits, plain)
    with pytest.raises(KeyError, match="x"), router.using(["a"] * 6):
        raise KeyError("x")
    assert torch.equal(llama(input_ids=TOKENS).logits, plain)
    router.remove()
    router.remove()
    assert set(vars(llama)) == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    with pytest.raises(ValueError, match="using must be called before remove"), router.using(["a"]):
        pass
    AdapterRouter(llama, adapters)


def test_gradients_of_the_inputs_are_those_of_the_merged_model(llama):
    adapters = three(llama, roles=ALL)
    ids = ["b", None, "c", "b", "a", "c"]
    embedded = llama.get_input_embeddings()(TOKENS)

    def gradient(run):
        with torch.enable_grad():
            inputs = embedded.detach().clone().requires_grad_()
            run(inputs).pow(2).sum().backward()
        return inputs.grad

    expected = gradient(lambda inputs: one_by_one(llama, adapters, ids, inputs_embeds=inputs))
    with AdapterRouter(llama, adapters).using(ids):
        got = gradient(lambda inputs: llama(inputs_embeds=inputs).logits)
    assert error(got, expected) < 1e-5


def test_autocast(llama):
    adapters, ids = three(llama, roles=ALL), ["b", None, "c", "b", "a", "c"]
    with torch.autocast("cpu", torch.bfloat16):
        expected = one_by_one(llama, adapters, ids, input_ids=TOKENS)
        with AdapterRouter(llama, adapters).using(ids):
            got = llama(input_ids=TOKENS).logits
    assert error(got.float(), expected.float()) < 2e-2


@pytest.mark.parametrize(
    "rows", [[0, 1, 2], [2, 2, 0, None], [None, 1], [0] * 61 + [1, 2, 3], [0, 1] * 4, [3, None] * 5, [None, None]]
)
def test_groups_hold_every_sample_once_and_at_most_twice_the_places(rows):
    groups = group_samples(rows, torch.device("cpu"))
    active = {i: row for i, row in enumerate(rows) if row is not None}
    if not active:
        assert groups is None
        return
    size = len(groups.places) // len(groups.rows)
    kept = range(len(groups.places)) if groups.kept is None else groups.kept.tolist()
    assert {int(groups.places[i]): int(groups.rows[i // size]) for i in kept} == active
    assert len(kept) == len(active)
    assert len(groups.rows) <= 2 * len(set(active.values()))
    assert len(groups.places) <= 2 * len(active)


def test_one_adapter_of_many_is_not_copied(llama):
    router = AdapterRouter(llama, three(llama))
    with router.using([None, "b", "b"]):
        chosen = [product for products in router._products.values() for product in products]
    assert len(chosen) == 6
    assert all(product.factors.shape[0] == 1 for product in chosen)
    stacks = {stack.deltas.untyped_storage().data_ptr() for layer in router._layers for stack in layer.stacks}
    assert {product.factors.untyped_storage().data_ptr() for product in chosen} == stacks


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "z"], r"ids must be None or registered, got 'z'. Use one of 'a', 'b', 'c'."),
        (["a", 0], r"ids must be None or registered, got 0."),
        (["a", ["b"]], r"ids must be None or registered, got \['b'\]."),
        ("ab", r"ids must be a list with one id for each sample, got 'ab'."),
        ([], r"ids must be a list with one id for each sample, got \[\]."),
        (None, r"ids must be a list with one id for each sample, got None."),
    ],
)
def test_bad_ids(llama, ids, message):
    router = AdapterRouter(llama, three(llama))
    with pytest.raises(ValueError, match=message), router.using(ids):
        pass


def test_a_wrong_number_of_ids_is_refused_also_where_it_divides_the_batch(llama):
    router = AdapterRouter(llama, three(llama))
    message = r"ids must be one for each sample of the batch, got 3 for a batch of 6."
    with router.using(["a", "b", "c"]):
        for call in (llama, llama.model, llama.generate):
            inner = call is llama.model
            with pytest.raises(ValueError, match=message.replace("6", "5") if inner else message):
                call(input_ids=TOKENS[:5] if inner else TOKENS)
        with pytest.raises(ValueError, match=message):
            llama(TOKENS)
        with pytest.raises(ValueError, match=message):
            llama(inputs_embeds=llama.get_input_embeddings()(TOKENS))


def test_bad_adapters(llama):
    adapter = random_adapter(llama, 1)
    for bad in ({}, [], None, "a", adapter):
        with pytest.raises(ValueError, match="adapters must be a dict or list of at least one S2FTAdapter"):
            AdapterRouter(llama, bad)
    with pytest.raises(ValueError, match="adapters must be of S2FTAdapter, got str for 'a'"):
        AdapterRouter(llama, {"a": "folder"})
    with pytest.raises(ValueError, match="ids of adapters must be text or integers, got None"):
        AdapterRouter(llama, {None: adapter})


def test_adapters_of_another_model(llama):
    with pytest.raises(ModelError, match=r"the model must be the base of all adapters, got other weights in .* than 1"):
        AdapterRouter(llama, [random_adapter(llama), random_adapter(tiny("llama", seed=1))])
    with pytest.raises(ModelError, match=r"weights must have the shape .* got \(32, 32\) instead of \(24, 24\)"):
        AdapterRouter(
            llama, [random_adapter(tiny("llama", hidden_size=24, num_attention_heads=3, num_key_value_heads=3))]
        )
    with pytest.raises(ModelError, match=r"weights must have the dtype of the adapter \(bfloat16\), got float32"):
        AdapterRouter(llama, [random_adapter(tiny("llama", dtype=torch.bfloat16))])
    with pytest.raises(ModelError, match=r"got a LlamaForCausalLM without transformer.h.0.attn.c_proj"):
        AdapterRouter(llama, [random_adapter(family_model("gpt2"))])


def test_a_merged_adapter_is_refused_before_and_after_registration(llama):
    adapters = three(llama)
    with pytest.raises(ModelError, match=r"got one with 'a' merged") as caught:
        AdapterRouter(merged(copy.deepcopy(llama), adapters["a"]), adapters)
    assert caught.value.hint == "Unmerge it first: adapter.unmerge(model)."
    with adapters["c"].on(llama), pytest.raises(ValueError, match="model must have no adapter merged into it for a ro"):
        AdapterRouter(llama, {"a": adapters["a"]})
    router, weights = AdapterRouter(llama, adapters), copy.deepcopy(llama.state_dict())
    merged(llama, adapters["a"])
    with pytest.raises(ModelError, match="the model must be the base of all adapters"), router.using(["b"]):
        pass
    llama.load_state_dict(weights)
    with router.using(["b"]):
        pass
    with adapters["a"].on(llama), pytest.raises(ValueError, match="no adapter merged"), router.using(["b"]):
        pass
    llama.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"keep its dtype under a router, got torch.bfloat16"), router.using(["b"]):
        pass


def test_models_that_cannot_be_routed(llama):
    adapters = three(llama)
    with pytest.raises(ValueError, match=r"model must be a model in memory"):
        AdapterRouter("llama", adapters)
    selective = copy.deepcopy(llama)
    apply_s2ft(selective, S2FTConfig(budget=0.1))
    with pytest.raises(ValueError, match=r"with S2FT on it already. Call restore\(model\) first"):
        AdapterRouter(selective, adapters)
    with pytest.raises(ModelError, match="weights must be loaded"):
        AdapterRouter(copy.deepcopy(llama).to("meta"), adapters)
    tied = copy.deepcopy(llama)
    tied.model.layers[1].mlp.down_proj.weight = tied.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ModelError, match=r"weights must belong to one layer for an adapter, got one that is both"):
        AdapterRouter(tied, {"a": adapters["a"]})
    offloaded = copy.deepcopy(llama)
    offloaded.model.layers[0].mlp.down_proj.forward = nn.Identity().forward
    with pytest.raises(ModelError, match="layers must run their own forward"):
        AdapterRouter(offloaded, adapters)
    quantized = copy.deepcopy(llama)
    quantized.is_quantized = True
    with pytest.raises(ModelError, match="got a quantized LlamaForCausalLM"):
        AdapterRouter(quantized, adapters)
    AdapterRouter(llama, adapters)
    with pytest.raises(ValueError, match="model must be without a router"):
        AdapterRouter(llama, adapters)


@NEEDS_COMPILE
def test_a_compiled_model_is_refused(llama):
    adapters = three(llama)
    compiled_itself = copy.deepcopy(llama)
    compiled_itself.compile(backend="eager")
    for model in (torch.compile(llama, backend="eager"), compiled_itself):
        with pytest.raises(ValueError, match="model must not be compiled for an adapter"):
            AdapterRouter(model, adapters)
    router = AdapterRouter(llama, adapters)
    compiled = torch.compile(llama, backend="eager")
    with router.using(["a"] * 6), pytest.raises(ValueError, match="model must not be compiled for a router"):
        compiled(input_ids=TOKENS)


def test_a_second_thread_is_refused(llama):
    router, errors = AdapterRouter(llama, three(llama)), []

    def second():
        try:
            with router.using(["b"]):
                pass
        except ModelError as error:
            errors.append(str(error))

    with router.using(["a"]):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert errors == ["the router must be used by one thread at a time, got a second one."]


def test_a_merge_inside_using_is_refused(llama):
    adapters = three(llama)
    router = AdapterRouter(llama, adapters)
    expected = merged(copy.deepcopy(llama), adapters["a"])(input_ids=TOKENS).logits
    before = copy.deepcopy(llama.state_dict())
    with router.using(["a"] * 6):
        for call in (adapters["b"].merge, lambda model: adapters["b"].on(model).__enter__()):
            with pytest.raises(ValueError, match=r"model must not be inside router.using"):
                call(llama)
        with pytest.raises(ValueError, match=r"model must not be inside router.using"):
            adapters["b"].switch(llama, adapters["a"])
        assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
        assert error(llama(input_ids=TOKENS).logits, expected) < 1e-6
    with adapters["b"].on(llama):
        pass


def test_weights_that_change_inside_using_are_refused(llama):
    adapters = three(llama)
    router = AdapterRouter(llama, adapters)
    # Adapter "c" has no channels in this block.
    with router.using(["c"] * 6):
        merged(llama, random_adapter(llama, 7, blocks=[2]))
        for call in (llama, llama.model):
            with pytest.raises(ModelError, match=r"weights must stay as they are inside router.using.*layers.2"):
                call(input_ids=TOKENS)


def step_of_a_fused_optimizer(model):
    weights = [layer.mlp.down_proj.weight for layer in model.model.layers]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(weights, lr=0.01, fused=True).step()


def cast_and_back(model):
    model.half().float()


def replace_through_data(model):
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.data = weight.data + 1


@pytest.mark.parametrize("change", [step_of_a_fused_optimizer, cast_and_back, replace_through_data])
def test_weights_that_change_without_a_count_of_torch_are_refused(llama, change):
    """The default optimizer of the Trainer is a fused one, which does not count its writes."""
    router = AdapterRouter(llama, three(llama, roles=("down",)))
    change(llama)
    with pytest.raises(ModelError, match=r"must be the base of all adapters, got other weights in model.layers"):
        router.using(["a"]).__enter__()


def test_inner_models_and_layers_need_one_row_for_each_id(llama):
    layer = llama.model.layers[0].mlp.down_proj
    with AdapterRouter(llama, three(llama)).using(["a", "b"]):
        llama.model(input_ids=TOKENS[:2])
        message = r"ids must be one for each sample of the batch, got 2 for a batch of 4."
        for call in (
            lambda: llama.model(input_ids=TOKENS[:4]),
            lambda: llama.model(TOKENS[:4]),
            lambda: layer(torch.zeros(4, 9, 48)),
            lambda: layer(torch.zeros(4, 48)),
        ):
            with pytest.raises(ValueError, match=message):
                call()


def test_layers_that_join_samples_and_tokens():
    model = family_model("opt")
    adapters, ids = three(model, roles=("up", "down", "o")), ["b", None, "a", "c", "a", "b"]
    expected = one_by_one(model, adapters, ids, input_ids=TOKENS)
    with AdapterRouter(model, adapters).using(ids):
        assert error(model(input_ids=TOKENS).logits, expected) < 1e-6
    other = family_model("opt")
    with AdapterRouter(other, adapters).using(ids[:3]), pytest.raises(ValueError, match="got 3 for a batch of 6"):
        other.model(input_ids=TOKENS)


def test_layers_of_images_are_refused():
    model = family_model("gemma3")
    tower = next(name for name, module in model.named_modules() if "vision" in name and name.endswith("out_proj"))
    options = {"side": "inputs", "indices": [1, 2], "scale": 0.1, "generator": torch.Generator().manual_seed(1)}
    patch = random_patch(model, f"{tower}.weight", **options)
    with pytest.raises(ModelError, match=r"layers must be of the text model for a router, got .*vision.*out_proj"):
        AdapterRouter(model, [S2FTAdapter(patches={patch.name: patch})])
    assert not model.model.language_model._forward_pre_hooks


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_text_layers_of_a_model_with_images(family):
    model = family_model(family)
    adapters, ids = three(model), ["b", None, "a"]
    expected = one_by_one(model, adapters, ids, input_ids=TOKENS[:3, :5])
    with AdapterRouter(model, adapters).using(ids):
        assert error(model(input_ids=TOKENS[:3, :5]).logits, expected) < 1e-6
