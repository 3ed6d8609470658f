"""attention's kernels on a GPU, at the published head widths."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.attention_cases import check, make
from tests.ops.caches import paged
from zamba_lm.ops.attention import KVCache, attention, self_attention
from zamba_lm.ops.dispatch import record
from zamba_lm.ops.gpu import capability
from zamba_lm.ops.linear.triton.few import HOPPER
from zamba_lm.ops.packing import Packing

pytestmark = pytest.mark.gpu

HEADS = {128: 32, 160: 32, 224: 32, 464: 16}  # Zamba2-1.2B, -2.7B, -7B, Zamba-7B-v1
LENGTHS = (1, 2, 63, 64, 65, 500)
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("width", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("page", [16, 256])
def test_decode(width, dtype, page):
    past = (0, 1, 63, 64, 65, 500, 4097)
    check((1,) * 7, past, width, page=page, heads=HEADS[width], dtype=dtype, turn=width != 464, host=False, device=CUDA)
    check((1,), (4097,), width, page=page, heads=HEADS[width], dtype=dtype, device=CUDA)


@pytest.mark.parametrize("width", [*HEADS, 80, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("page", [None, 64, 256])
def test_prefill(width, dtype, page):
    past = (0,) * 6 if page is None else (0, 500, 64, 1, 300, 65)
    check(LENGTHS, past, width, page=page, dtype=dtype, turn=True, device=CUDA)


@pytest.mark.parametrize("width", HEADS)
@pytest.mark.parametrize("page", [None, 256])
def test_a_long_prompt(width, page):
    check((4097,), (0,), width, page=page, dtype=torch.bfloat16, turn=True, device=CUDA)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("past", [(0, 0, 0, 0, 0), (77, 255, 256, 1000, 128)])
def test_prompts_on_hopper(dtype, past):
    """Tiles and blocks that begin and end anywhere, nan behind every end."""
    check((300, 1, 63, 128, 700), past, 160, page=256, dtype=dtype, turn=True, device=CUDA)


@pytest.mark.parametrize("width", [160, 464])
def test_one_graph_serves_every_length(width):
    """Captured once; then ages, pages and queries change in place."""
    S, steps = 3, 40
    past = [0, 13, 250]
    before = [tuple(make(p + 1, width, device=CUDA)[1:]) for p in past]
    before = [(keys[:-1], values[:-1]) for keys, values in before]
    cache = paged(before, [p + steps for p in past], page=16, heads=2, width=width, device=CUDA, host=False)
    plain = KVCache(cache.keys.clone(), cache.values.clone(), cache.pages_SM, cache.past_S.clone(), None)
    qkv = torch.randn(S, 6 * width, device=CUDA)
    parts = qkv.unflatten(-1, (6, width)).split(2, dim=1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), record() as ran:
        attention(*parts, 0.1, Packing([1] * S), cache)
    torch.cuda.synchronize()
    assert ran == [("attention", "triton")]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = attention(*parts, 0.1, Packing([1] * S), cache)
    for _ in range(steps):
        qkv.normal_()
        y.fill_(torch.nan)
        graph.replay()
        assert_within("op", y, attention(*parts, 0.1, Packing([1] * S), plain))
        cache.past_S.add_(1)
        plain.past_S.add_(1)
    assert torch.equal(cache.keys.nan_to_num(), plain.keys.nan_to_num())


@pytest.mark.parametrize("width", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients(width, dtype):
    from zamba_lm.ops.attention.reference import attention_reference
    from zamba_lm.ops.rope import angles

    lengths = (1, 65, 300)
    packing, gradients = Packing(lengths), []
    inputs = make(sum(lengths), width, dtype=dtype, device=CUDA)
    turns = angles(torch.cat([torch.arange(n, device=CUDA) for n in lengths]), width, 1e4)
    dy = torch.randn(sum(lengths), 2, width, device=CUDA)
    for run, wide in ((attention, dtype), (attention_reference, torch.float64)):
        leaves = [x.detach().to(wide).requires_grad_() for x in inputs]
        y = run(*leaves, (width / 2) ** -0.5, packing, None, turns)
        gradients.append(torch.autograd.grad(y, leaves, dy.to(wide)))
    for got, expected in zip(*gradients, strict=True):
        assert_within("gradient", got, expected, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("turn", "joined"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("lengths", [(*LENGTHS, 129, 1300), (4097,), (600, 600)])
def test_gradients_on_hopper(lengths, turn, joined, dtype):
    """Queries, keys and values in one tensor or three, documents of any lengths; the same numbers every time."""
    from zamba_lm.ops.attention.reference import attention_reference
    from zamba_lm.ops.rope import angles

    T, packing, width = sum(lengths), Packing(lengths), 160
    qkv = torch.stack(make(T, width, dtype=dtype, device=CUDA), dim=1).requires_grad_()
    turns = angles(torch.cat([torch.arange(n, device=CUDA) for n in lengths]), width, 1e4) if turn else None
    dy = torch.randn(T, 2, width, device=CUDA, dtype=dtype)
    run = self_attention if joined else lambda x, *how: attention(*x.unbind(1), *how)
    y, again = (run(qkv, (width / 2) ** -0.5, packing, None, turns) for _ in range(2))
    (got,), (second,) = torch.autograd.grad(y, qkv, dy), torch.autograd.grad(again, qkv, dy)
    wide = qkv.detach().double().requires_grad_()
    expected = attention_reference(*wide.unbind(1), (width / 2) ** -0.5, packing, None, turns)
    if capability(CUDA) == HOPPER:
        assert y.grad_fn.name() == ("_JoinedBackward" if joined else "_ApartBackward")
    assert torch.equal(y, again) and torch.equal(got, second)
    assert_within("op", y, expected)
    assert_within("gradient", got, torch.autograd.grad(expected, wide, dy.double())[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("page", [None, 64, 256])
def test_long_prompts_of_wide_heads(dtype, page):
    """One pass on Hopper, of several sequences at once; what lies behind each is poisoned."""
    past = (0,) * 3 if page is None else (2000, 5, 77)
    check((1500, 1, 3000), past, 464, page=page, dtype=dtype, turn=True, device=CUDA)
