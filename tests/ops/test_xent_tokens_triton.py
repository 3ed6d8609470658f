"""token_scores' kernels through the interpreter: what tests/ops/test_xent_tokens.py asks of the reference."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.test_xent import make
from tests.ops.test_xent_tokens import expected, weighted
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.xent import token_scores
from zamba_lm.ops.xent import triton as ours
from zamba_lm.ops.xent.triton import tokens

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_xent_cuda.py runs the real kernels")


@pytest.fixture(autouse=True)
def through_the_interpreter():
    with interpreted(), force(token_scores="triton"):
        yield


@pytest.mark.parametrize("total", [1, 65])
@pytest.mark.parametrize("vocabulary", [2, 500])
def test_values(total, vocabulary, monkeypatch):
    monkeypatch.setattr(ours, "WHOLE", 128)
    x, weight, targets = make(total, vocabulary=vocabulary, ignored=range(1, total, 3))
    targets[::4] = (x @ weight.T).argmax(-1)[::4]  # some are the likeliest
    with record() as calls:
        scores = token_scores(x, weight, targets)
    assert calls == [("token_scores", "triton")]
    for got, right in zip(scores, expected(x, weight, targets)):
        assert got.dtype in (torch.float32, torch.bool)
        assert_within("op", got.float(), right.float())


def test_large_logits_and_impossible_ones(monkeypatch):
    monkeypatch.setattr(ours, "WHOLE", 128)
    x, weight, targets = make(5, vocabulary=300)
    for got, right in zip(token_scores(100 * x, weight, targets), expected(100 * x, weight, targets)):
        assert_within("op", got.float(), right.float())
    weight[7] = -torch.inf
    assert token_scores(x.abs(), weight, targets.clamp(min=8)).entropy_T.isfinite().all()


@pytest.mark.parametrize("frozen", [(), ("weight",), ("x",)])
@pytest.mark.parametrize("kept", [True, False])
def test_gradients(frozen, kept, monkeypatch):
    monkeypatch.setattr(tokens, "KEPT", 1 << 30 if kept else 0)
    monkeypatch.setattr(tokens, "chunk", lambda *_: 7)
    x, weight, targets = make(17, ignored=(0, 16))
    targets = torch.where(targets < 0, -100, targets)
    for got, right in zip(weighted(token_scores, x, weight, targets, frozen=frozen), weighted(expected, x, weight, targets)):
        if got is not None:
            assert_within("gradient", got, right)
    if "x" not in frozen:
        assert weighted(token_scores, x, weight, targets)[0][[0, 16]].count_nonzero() == 0


def test_no_tokens_have_no_gradient():
    x, weight, targets = make(3)
    dx, dweight = weighted(token_scores, x[:0], weight, targets[:0])
    assert dx.shape == (0, 6) and torch.equal(dweight, torch.zeros_like(weight))


def test_autocast_leaves_a_master_weight_its_dtype():
    x, weight, targets = make(9)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = token_scores(x, weight, targets).logprob_T
    got.sum().backward()
    assert got.dtype == weight.grad.dtype == torch.float32
    assert_within("op", got.detach(), expected(x, weight.detach(), targets)[0], dtype=torch.bfloat16)


def test_what_cannot_be_multiplied_is_named():
    x, weight, targets = make(5, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"x is torch.float64, expected one of torch.float32"):
        token_scores(x, weight, targets)
