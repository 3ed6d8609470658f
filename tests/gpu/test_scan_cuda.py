"""The scan kernels on a GPU at the published shape: odd lengths, packed, every dtype, gradients, never a large tensor."""

from contextlib import nullcontext

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import gradients
from tests.ops.scans import defined, mixer
from zamba_lm.ops.dispatch import record
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan import scan
from zamba_lm.ops.soon import backward_follows

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PUBLISHED = {"heads": 2, "width": 3712, "n": 16}
ODD = {"heads": 3, "width": 75, "n": 5}
LENGTHS = [(1,), (2,), (63,), (64,), (65,), (500,), (4097,), (1, 300, 7, 7, 64, 65)]


def on_gpu(lengths, **more):
    """Decays of at least 1: a state that hardly fades rounds the same way at every token, and thousands of them add up."""
    given = mixer(sum(lengths), sequences=len(lengths), **more)
    given["A_HPN"] -= 1.0
    return {name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in given.items()}


@pytest.fixture(autouse=True)
def poisoned():
    """torch fills new tensors with NaN while it is deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shape", [PUBLISHED, ODD], ids=["published", "odd"])
def test_output_and_state(shape, dtype, lengths):
    given = on_gpu(lengths, dtype=dtype, **shape)
    with torch.no_grad(), record() as calls:
        y, after = scan(packing=Packing(lengths), **given)
    assert calls == [("scan", "triton")]
    expected, last = defined(lengths, **given)
    assert_within("op", y, expected)
    assert_within("state", after, last)


def test_many_sequences_take_another_layout():
    lengths = (9,) * 40
    given = on_gpu(lengths, **PUBLISHED)
    y, after = scan(packing=Packing(lengths), **given)
    expected, last = defined(lengths, **given)
    assert_within("op", y, expected)
    assert_within("state", after, last)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("lengths", [(1,), (63,), (130,), (500,), (70, 1, 9, 64)], ids=str)
@pytest.mark.parametrize(("shape", "dtype"), [(PUBLISHED, F32), (PUBLISHED, BF16), (ODD, F32)])
def test_gradients(shape, dtype, lengths, at_once):
    """Each gradient in units of its own spread, since those of B, C and A are sums over thousands."""
    given = on_gpu(lengths, dtype=dtype, limited=shape is ODD, **shape)
    rest = {"dt_limit": given.pop("dt_limit")}
    weights = [torch.randn_like(given["x_THP"]), torch.randn_like(given["state_SHPN"])]

    def of(function, values):
        leaves = {name: v.detach().clone().requires_grad_() for name, v in values.items()}
        results = function(**leaves)
        torch.autograd.backward(results, [w.to(y.dtype) for w, y in zip(weights, results, strict=True)])
        return {name: leaf.grad for name, leaf in leaves.items()}

    with backward_follows() if at_once else nullcontext():
        actual = of(lambda **i: scan(packing=Packing(lengths), **i, **rest), given)
    expected = of(lambda **i: defined(lengths, **i, **rest), {name: v.double() for name, v in given.items()})
    for name, value in given.items():
        spread = expected[name].square().mean().sqrt().clamp(min=1e-3)
        assert actual[name].dtype == value.dtype
        assert_within("gradient", actual[name].double() / spread, expected[name] / spread, dtype=dtype)


def test_the_same_gradients_every_time():
    given = on_gpu((300, 41), dtype=BF16, limited=False, **PUBLISHED)
    rest = {"dt_limit": given.pop("dt_limit")}
    once, again = (gradients(lambda **i: scan(packing=Packing((300, 41)), **i, **rest), given) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in given)


def test_never_a_tensor_of_all_tokens_and_states():
    T = 4096
    given = on_gpu((T,), dtype=BF16, limited=False, **PUBLISHED)
    everything = T * given["state_SHPN"].nbytes
    leaves = {name: v.requires_grad_() if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y, _ = scan(packing=Packing((T,)), **leaves)
    assert torch.cuda.memory_allocated() - before < everything / 16, "kept for the way back"
    y.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < everything / 2
