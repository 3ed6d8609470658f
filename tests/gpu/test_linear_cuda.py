"""The projections on a GPU at published shapes: every route by the number of rows, against float64."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import assert_gradients
from tests.ops.test_linear_fused import naive, naive_gated
from zamba_lm.ops.dispatch import record
from zamba_lm.ops.linear import Normed, Squares, Unsummed, gated_linear, linear, summed

pytestmark = pytest.mark.gpu
ROWS = [1, 2, 4, 5, 17, 32, 63, 64, 65, 129, 500]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (O, I, groups of the norm, residual, split input) of one model each: input projection, output projection, q k v, down, link
SHAPES = {
    "2.7b in": (10448, 2560, 1, False, False),
    "2.7b out": (2560, 5120, 1, True, False),
    "2.7b qkv": (15360, 5120, 1, False, True),
    "2.7b down": (2560, 10240, 0, False, False),
    "2.7b link": (2560, 2560, 0, True, False),
    "7b out": (3584, 7168, 2, True, False),
    "1.2b in": (8512, 2048, 1, False, False),
    "zamba-7b in": (14848, 3712, 1, False, False),
    "zamba-7b qkv": (22272, 7424, 1, False, True),
    "zamba-7b down": (3712, 14848, 0, False, False),
    "odd": (77, 139, 1, True, True),
}


def randn(*shape, dtype, scale=1.0, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=generator, device="cuda") * scale).to(dtype)


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 products in float32, in torch's own too."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def poison(*shape, dtype):
    """Leave NaN in the memory that the next output is likely to get."""
    torch.full(shape, torch.nan, dtype=dtype, device="cuda")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(name, rows):
    O, I, groups, with_residual, split = SHAPES[name]  # noqa: E741
    for dtype in DTYPES:
        scale = I**-0.5 / (4 if dtype == torch.float32 else 1)  # cuBLAS's own rounding of 500 sums of 7424 products is 2e-5
        x, weight = randn(rows, I, dtype=dtype), randn(O, I, dtype=dtype, scale=scale)
        norm = Normed(1 + randn(I, dtype=dtype, scale=0.25), 1e-5, groups) if groups else None
        residual = randn(rows, O, dtype=dtype, seed=1) if with_residual else None
        parts = (x[:, : I // 2], x[:, I // 2 :]) if split else x
        poison(rows, O, dtype=dtype)
        with record() as calls:
            y = linear(parts, weight, norm=norm, residual_TO=residual)
        assert calls[0] == ("linear", "triton")
        assert_within("op", y, naive(x, weight, norm, residual))
        if norm is not None and dtype != torch.float32 and not split:
            assert_within("op", linear(x.float(), weight, norm=norm, residual_TO=residual), naive(x, weight, norm, residual))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("F", "I"), [(10240, 2560), (14848, 3712), (8192, 2048), (79, 139)])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_gated(rows, F, I, with_adapter):  # noqa: E741
    for dtype in DTYPES:
        x, weight = randn(rows, I, dtype=dtype), randn(2 * F, I, dtype=dtype, scale=I**-0.5 / 2)
        norm = Normed(1 + randn(I, dtype=dtype, scale=0.25), 1e-5)
        adapter = None
        if with_adapter:
            adapter = (randn(128, I, dtype=dtype, scale=I**-0.5), randn(2 * F, 128, dtype=dtype, scale=0.03), None, None)
        poison(rows, F, dtype=dtype)
        assert_within("op", gated_linear(x, weight, norm=norm, adapter=adapter), naive_gated(x, weight, norm, adapter))


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="kernels for Hopper")
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("width", [1024, 1032, 2048, 2056, 3000, 4104, 5000, 7168, 10448, 16384])
def test_any_width_through_shared_memory(width, dtype):
    """Powers of two and what is a little more, one row and several, into a number of outputs that nothing divides."""
    from zamba_lm.ops.linear.triton import few

    weight, norm = randn(1501, width, dtype=dtype, scale=width**-0.5), Normed(1 + randn(width, dtype=dtype, scale=0.25), 1e-5)
    assert few.streams_through(weight)
    x, residual = randn(1, width, dtype=dtype), randn(1, 1501, dtype=dtype, seed=1)
    assert_within("op", few.ring_row(x, weight, norm, residual), naive(x, weight, norm, residual))
    assert_within("op", few.ring_row(x, weight[:1500], norm, gated=True), naive_gated(x, weight[:1500], norm))
    for rows in (3, 33):
        x, residual = randn(rows, width, dtype=dtype), randn(rows, 1501, dtype=dtype, seed=1)
        assert_within("op", linear(x, weight, norm=norm, residual_TO=residual), naive(x, weight, norm, residual))
        assert_within("op", gated_linear(x, weight[:1500], norm=norm), naive_gated(x, weight[:1500], norm))


def test_what_does_not_fit_shared_memory_goes_another_way():
    from zamba_lm.ops.linear.triton.few import streams_through

    dtype = torch.bfloat16
    odd, wide, part = randn(1030, 1028, dtype=dtype), randn(64, 20000, dtype=dtype), randn(1024, 1032, dtype=dtype)[:, :1024]
    assert not streams_through(odd) and not streams_through(wide)
    for weight in (odd, wide, part):
        for rows in (1, 3):
            x = randn(rows, weight.shape[1], dtype=dtype, scale=weight.shape[1] ** -0.5)
            assert_within("op", linear(x, weight), naive(x, weight))


@pytest.mark.parametrize("rows", [2, 32])
def test_several_rows_in_a_graph_give_the_same_bits(rows):
    """Sums over parts of the columns meet in counters, which every replay finds as the first did."""
    dtype = torch.bfloat16
    x, ups = randn(rows, 2560, dtype=dtype), [randn(10448, 2560, dtype=dtype, scale=0.02, seed=i) for i in range(3)]
    downs = [randn(2560, 10448, dtype=dtype, scale=0.01, seed=i) for i in range(3)]

    def chain(h):
        for a, b in zip(ups, downs, strict=True):
            h = linear(linear(h, a), b, residual_TO=h)
        return h

    expected = chain(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = chain(x)
    for _ in range(50):
        y.fill_(torch.nan)
        graph.replay()
        assert torch.equal(y, expected)


@pytest.mark.parametrize("rows", [2, 9, 32, 64, 65, 256])
@pytest.mark.parametrize(("O", "I"), [(2560, 5120), (3712, 7424), (77, 139)])
def test_sums_are_left_to_a_norm(rows, O, I):  # noqa: E741
    """The same numbers as without, to the bit where only the sum is put off; the other half of a norm behind the product."""
    dtype = torch.bfloat16
    x, weight, residual = (
        randn(rows, I, dtype=dtype),
        randn(O, I, dtype=dtype, scale=I**-0.5),
        randn(rows, O, dtype=dtype, seed=1),
    )
    norm, up = Normed(1 + randn(O, dtype=dtype, scale=0.25), 1e-5), randn(1501, O, dtype=dtype, scale=O**-0.5)
    later = linear(x, weight, residual_TO=residual, later=True)
    poison(rows, O, dtype=dtype)
    y, plain = linear(later, up, norm=norm), linear(x, weight, residual_TO=residual)
    assert torch.equal(summed(later), plain)
    assert_within("op", y, naive(plain, up, norm))
    wide = x.float() * 3
    before = Normed(1 + randn(I, dtype=dtype, scale=0.25), 1e-5)
    squares = Squares(wide.square().view(rows, -1, I // 16 if I % 16 == 0 else I).sum(-1), I, 1e-5)
    later = linear((wide * before.weight_I).to(dtype), weight, norm=squares, residual_TO=residual, later=True)
    assert type(later) is Unsummed
    both = torch.cat((residual, residual), dim=1)
    twice, double = Normed(torch.cat((norm.weight_I, norm.weight_I)), 1e-5), torch.cat((up, up), dim=1)
    y = linear((later, both[:, O:]), double, norm=twice)
    assert_within("op", later.made_TO, naive(wide, weight, before, residual), dtype=dtype)
    assert_within("op", y, naive((later.made_TO, residual), double, twice))


def test_strided_rows():
    wide, weight = randn(3, 6000, dtype=torch.bfloat16), randn(640, 2560, dtype=torch.bfloat16, scale=0.02)
    for x in (wide[:, 8:2568], wide[:, 3:2563], wide[:, : 2 * 2560 : 2]):
        assert_within("op", linear(x, weight), naive(x, weight))


def test_gradients():
    g = {"dtype": torch.float32}
    inputs = {"x": randn(70, 72, **g), "w": randn(84, 72, scale=0.1, **g), "n": 1 + randn(72, scale=0.25, **g)}
    inputs |= {"A": randn(5, 72, scale=0.1, **g), "B": randn(84, 5, scale=0.3, **g)}

    def function(x, w, n, A, B):
        return [gated_linear(x, w, norm=Normed(n, 1e-5), adapter=(A, B, None, None))]

    inputs = {name: value.cpu() for name, value in inputs.items()}
    on_gpu = lambda **i: [y.cpu() for y in function(**{name: value.cuda() for name, value in i.items()})]  # noqa: E731
    assert_gradients(on_gpu, lambda x, w, n, A, B: [naive_gated(x, w, Normed(n, 1e-5), (A, B))], inputs)


def test_a_chain_in_a_graph_gives_the_same_bits():
    """Dependent launch: kernels overlap, and every replay reads what the one before wrote."""
    dtype = torch.bfloat16
    up = [randn(10448, 2560, dtype=dtype, scale=0.02, seed=i) for i in range(4)]
    down = [randn(2560, 10448, dtype=dtype, scale=0.01, seed=i) for i in range(4)]
    x, norm = randn(1, 2560, dtype=dtype), Normed(1 + randn(2560, dtype=dtype, scale=0.25), 1e-5)

    def chain(h):
        for a, b in zip(up, down, strict=True):
            h = linear(linear(h, a, norm=norm), b, residual_TO=h)
        return h

    expected = chain(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = chain(x)
    for _ in range(50):
        y.fill_(torch.nan)
        graph.replay()
        assert torch.equal(y, expected)
