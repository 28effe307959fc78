import numpy as np
import pytest
import torch

from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.sparsegpt import InputProducts, inverse_factor, sparsegpt


def factor_of(inputs):
    products = InputProducts(inputs.shape[-1], torch.device("cpu"))
    products.add(inputs)
    return products.prepared("layer")


def correlated(tokens, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) + 2 * torch.eye(width)
    return torch.randn(tokens, width, generator=generator) @ mix


def slow_sparsegpt(weight, inputs, cut, damping=0.01, columns=128):
    """Algorithm 1 as it stands, a column at a time with all columns behind it, in float64; masks by sorting."""
    w, x = weight.double().clone(), inputs.double()
    hessian = 2 * x.T @ x
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    rows, width = w.shape
    size = cut.group[1] if cut.group else 1
    columns = max(size, columns // size * size)
    gone = torch.zeros(rows, width, dtype=torch.bool)
    left = cut.count
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        if cut.group is None:
            count = round(left * (stop - start) / (width - start))
            left -= count
            scores = (w[:, start:stop] / upper.diagonal()[start:stop]) ** 2
            order = sorted((scores[i, j].item(), j, i) for i in range(rows) for j in range(stop - start))
            for _, j, i in order[:count]:
                gone[i, start + j] = True
        for column in range(start, stop):
            if cut.group and (column - start) % size == 0:
                for i in range(rows):
                    scores = [(w[i, column + j] / upper[column + j, column + j]).item() ** 2 for j in range(size)]
                    for j in sorted(range(size), key=lambda j, scores=scores: (scores[j], j))[: cut.group[0]]:
                        gone[i, column + j] = True
            error = torch.where(gone[:, column], w[:, column], 0) / upper[column, column]
            w[:, column:] -= error[:, None] * upper[column, column:]
    return w.masked_fill(gone, 0)


@pytest.mark.parametrize(("name", "group"), [("50", None), ("70", None), ("2of4", (2, 4))])
def test_weights_of_the_released_code(golden, name, group):
    data, expected = (
        np.load(golden / "wanda.npz"),
        torch.from_numpy(np.load(golden / "sparsegpt.npz")[f"weight_{name}"]),
    )
    weight = torch.from_numpy(data["weight"])
    products = InputProducts(256, torch.device("cpu"))
    for part in torch.from_numpy(data["activations"]).split(100):
        products.add(part)
    count = int((expected == 0).sum())
    got = sparsegpt(weight, products.prepared(""), Removal(count, group))
    assert torch.equal(got == 0, expected == 0)
    assert (got - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 5), (5, 33), (3, 129), (9, 200), (2, 257)])
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.9, 1])
def test_unstructured_equals_the_slow_twin(shape, sparsity):
    weight, inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)), correlated(400, shape[1])
    count = round(sparsity * weight.numel())
    got = sparsegpt(weight, factor_of(inputs), Removal(count))
    assert (got == 0).sum() == count
    if shape[1] <= 128 or sparsity in (0, 0.5, 1):  # else columns share the count by another rounding
        expected = slow_sparsegpt(weight, inputs, Removal(count))
        assert torch.equal(got == 0, expected == 0)
        assert torch.allclose(got.double(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((5, 8), (2, 4)),
        ((3, 132), (2, 4)),
        ((4, 256), (3, 8)),
        ((6, 36), (5, 12)),
        ((2, 600), (7, 200)),
        ((3, 48), (0, 4)),
    ],
)
def test_groups_equal_the_slow_twin(shape, group):
    weight, inputs = torch.randn(shape, generator=torch.Generator().manual_seed(2)), correlated(900, shape[1])
    cut = Removal(weight.numel() * group[0] // group[1], group)
    got = sparsegpt(weight, factor_of(inputs), cut)
    expected = slow_sparsegpt(weight, inputs, cut)
    assert ((got == 0).view(-1, group[1]).sum(1) == group[0]).all()
    assert torch.equal(got == 0, expected == 0)
    assert torch.allclose(got.double(), expected, atol=1e-3)


@pytest.mark.parametrize("block_size", [1, 7, 32, 64, 1000])
def test_the_block_size_equals_that_of_the_slow_twin(block_size):
    weight, inputs = torch.randn((5, 48), generator=torch.Generator().manual_seed(1)), correlated(400, 48)
    got = sparsegpt(weight, factor_of(inputs), Removal(120), block_size=block_size)
    if block_size > 7:  # else columns share the count by another rounding
        expected = slow_sparsegpt(weight, inputs, Removal(120), columns=block_size)
        assert torch.equal(got == 0, expected == 0)
        assert torch.allclose(got.double(), expected, atol=1e-3)
    assert (got == 0).sum() == 120


@pytest.mark.parametrize("damping", [1e-4, 0.1, 3.0])
def test_the_damping_equals_that_of_the_slow_twin(damping):
    weight, inputs = torch.randn((5, 33), generator=torch.Generator().manual_seed(1)), correlated(400, 33)
    products = InputProducts(33, torch.device("cpu"))
    products.add(inputs)
    factor = products.prepared("layer", damping=damping)
    assert factor.damping == damping
    expected = slow_sparsegpt(weight, inputs, Removal(80), damping=damping)
    got = sparsegpt(weight, factor, Removal(80))
    assert torch.equal(got == 0, expected == 0)
    assert torch.allclose(got.double(), expected, atol=1e-3)


def test_what_stays_makes_up_for_what_goes():
    generator = torch.Generator().manual_seed(3)
    weight, noise = torch.randn(32, 64, generator=generator), torch.randn(500, 64, generator=generator)
    # A few directions hold most of the inputs, as in models.
    inputs = correlated(500, 64)[:, :12] @ torch.randn(12, 64, generator=generator) + 3 * noise
    pruned = sparsegpt(weight, factor_of(inputs), Removal(1024))
    masked = weight.masked_fill(pruned == 0, 0)
    wanda = weight.masked_fill(Removal(1024).mask(weight.abs() * inputs.norm(dim=0)), 0)
    error, uncorrected, other = ((inputs @ (w - weight).T).norm() for w in (pruned, masked, wanda))
    assert error < 0.7 * uncorrected
    assert error < 0.7 * other


@pytest.mark.parametrize("group", [None, (2, 4)])
def test_unused_inputs_go_first_and_the_count_stays_exact(group):
    inputs = correlated(300, 16)
    inputs[:, [2, 3, 7, 11, 15]] = 0
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(4))
    factor = factor_of(inputs)
    assert factor.unused.nonzero()[:, 0].tolist() == [2, 3, 7, 11, 15]
    cut = Removal(48, group)
    got = sparsegpt(weight, factor, cut)
    assert (got == 0).sum() == 48
    if group is None:
        assert (got[:, factor.unused] == 0).all()
    few = sparsegpt(weight, factor, Removal(20))
    stayed = (few != 0) & factor.unused
    assert (few == 0).sum() == 20
    assert stayed.any()
    assert torch.equal(few[stayed], weight[stayed])


def test_only_unused_inputs():
    weight = torch.randn(4, 8)
    got = sparsegpt(weight, factor_of(torch.zeros(50, 8)), Removal(16))
    assert (got == 0).sum() == 16
    assert torch.equal(got[got != 0], weight[got != 0])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_inputs_changes_nothing(scale):
    inputs = correlated(300, 24)
    inputs[:, 5] = 0
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(5))
    plain, scaled = (sparsegpt(weight, factor_of(x), Removal(72)) for x in (inputs, inputs * scale))
    assert torch.equal(plain == 0, scaled == 0)
    assert torch.allclose(plain, scaled, atol=1e-4)


def test_the_factor_is_that_of_the_inverse():
    inputs = correlated(300, 40)
    factor = factor_of(inputs)
    hessian = inputs.double().T @ inputs.double() / 300
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.upper.diagonal() > 0).all()
    product = factor.upper.double().T @ factor.upper.double() @ hessian
    assert torch.allclose(product, torch.eye(40, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype):
    products = correlated(200, 64).square().T @ correlated(200, 64).square()
    expected = inverse_factor(products).upper
    torch.set_default_dtype(dtype)
    try:
        found = inverse_factor(products).upper
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_duplicated_inputs_are_damped_enough_as_they_are():
    inputs = correlated(500, 32).repeat(1, 3)
    factor = factor_of(inputs)
    assert factor.damping == 0.01
    assert torch.isfinite(sparsegpt(torch.randn(4, 96), factor, Removal(192))).all()


def test_fewer_tokens_than_inputs_are_damped_by_more():
    inputs = correlated(8, 64)
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(6))
    factor = factor_of(inputs)
    assert factor.damping == pytest.approx(0.08)
    assert (sparsegpt(weight, factor, Removal(512)) == 0).sum() == 512
    assert factor_of(inputs[:1]).damping == pytest.approx(0.64)


def test_a_hessian_that_is_not_positive_is_damped_until_it_is_and_says_so():
    products = torch.eye(8)
    products[0, 1] = products[1, 0] = 1.5
    with (
        pytest.warns(HfFarmsWarning, match=r"Hessian of layers\.3\.q is singular: 1 of its mean diagonal was added"),
        pytest.warns(HfFarmsWarning, match=r"singular: 0\.1 of its mean"),
    ):
        factor = inverse_factor(products, name="layers.3.q")
    assert factor.damping == pytest.approx(1)
    assert torch.isfinite(factor.upper).all()
    assert products[0, 0] == 1


def test_products_that_are_not_finite_are_refused():
    with (
        pytest.warns(HfFarmsWarning, match="is singular"),
        pytest.raises(ModelError, match=r"products of inputs must be finite and positive, got none that are in q"),
    ):
        inverse_factor(torch.full((4, 4), float("nan")), name="q")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_taken_in_float32(dtype):
    inputs = torch.full((3, 50, 4), 300.0, dtype=dtype)  # 300 squared overflows float16
    products = InputProducts(4, torch.device("cpu"))
    products.add(inputs)
    assert products.num_tokens == 150
    assert torch.allclose(products._sum.float() / 150, torch.full((4, 4), 90000.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype(dtype):
    weight = (1000 * torch.randn(8, 32, generator=torch.Generator().manual_seed(7))).to(dtype)
    before = weight.clone()
    inputs = (100 * correlated(200, 32)).to(dtype)
    got = sparsegpt(weight, factor_of(inputs), Removal(128))
    assert got.dtype == dtype
    assert torch.isfinite(got).all()
    assert (got == 0).sum() == 128
    assert torch.equal(weight, before)


def test_no_weight_is_lost_to_the_range_of_float16():
    # Corrections take some weights below what float16 can hold.
    weight = (2e-7 * torch.randn(64, 32, generator=torch.Generator().manual_seed(8))).half()
    assert 0 < int((weight == 0).sum()) < 1024
    got = sparsegpt(weight, factor_of(correlated(200, 32)), Removal(1024))
    assert int((got == 0).sum()) == 1024


def test_two_halves_merge_to_the_whole():
    inputs = correlated(100, 12)
    whole, half, other = (InputProducts(12, torch.device("cpu")) for _ in range(3))
    whole.add(inputs)
    half.add(inputs[:30])
    other.add(inputs[30:])
    half.merge(other)
    assert half.num_tokens == 100
    assert torch.allclose(half._sum, whole._sum, rtol=1e-5, atol=1e-2)
