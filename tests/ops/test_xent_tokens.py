"""token_scores: torch's log-softmax in float64, whatever the chunks, with a gradient of its own from above for every token."""

import pytest
import torch
import torch.nn.functional as F

from tests.numerics.tolerances import assert_within
from tests.ops.memory import Held
from tests.ops.test_xent import make
from zamba_lm.ops.xent import token_logprobs, token_scores, tokens


def expected(x, weight, targets):
    """TokenScores by torch in float64."""
    logits = x.double() @ weight.double().T
    logp, counted = F.log_softmax(logits, -1), targets >= 0
    hit = logp.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    return hit * counted, entropy * counted, logits.mean(-1) * counted, (logits.argmax(-1) == targets) & counted


def weighted(scores, x, weight, targets, *, frozen=()):
    """Gradients (x, weight) of a sum in which every token weighs differently; None for a frozen one."""
    x, weight = (v.detach().clone() for v in (x, weight))
    for name, v in (("x", x), ("weight", weight)):
        v.requires_grad_(name not in frozen)
    weights = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    (scores(x, weight, targets)[0] * weights).sum().backward()
    return x.grad, weight.grad


@pytest.mark.parametrize("total", [1, 2, 63, 64, 65, 300])
@pytest.mark.parametrize("chunk", [1, 64, 1000])
def test_values(total, chunk, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    inputs = make(total, ignored=range(1, total, 3))
    for got, right in zip(token_scores(*inputs), expected(*inputs)):
        assert got.dtype in (torch.float32, torch.bool)
        assert_within("op", got.float(), right.float())
    assert torch.equal(token_logprobs(*inputs), token_scores(*inputs).logprob_T)


@pytest.mark.parametrize("frozen", [(), ("weight",), ("x",)])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_gradients(frozen, chunk, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    x, weight, targets = make(65, ignored=(0, 64))
    targets = torch.where(targets < 0, -100, targets)
    for got, right in zip(weighted(token_scores, x, weight, targets, frozen=frozen), weighted(expected, x, weight, targets)):
        if got is not None:
            assert_within("gradient", got, right)
    assert weighted(token_scores, x, weight, targets)[0][[0, 64]].count_nonzero() == 0


@pytest.mark.parametrize("frozen", [(), ("weight",)])
def test_float64_stays_float64(frozen):
    """So that finite differences of a whole model can be taken."""
    x, weight, targets = make(9, dtype=torch.float64)
    got, right = (weighted(f, x, weight, targets, frozen=frozen)[0] for f in (token_scores, expected))
    torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-12)
    assert token_logprobs(x, weight, targets).dtype == torch.float64


def test_bfloat16_and_autocast():
    x, weight, targets = make(65)
    with torch.autocast("cpu", torch.bfloat16):
        got = token_logprobs(x, weight, targets)
    assert got.dtype == torch.float32
    assert torch.equal(got, token_logprobs(x.bfloat16(), weight.bfloat16(), targets))
    assert_within("op", got, expected(x, weight, targets)[0], dtype=torch.bfloat16)


def test_a_frozen_head_costs_no_gradient_and_no_logits_are_held(monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 16)
    x, weight, targets = make(512, width=64, vocabulary=3000)
    x.requires_grad_()
    with Held() as held:
        token_logprobs(x, weight, targets).sum().backward()
    assert held.largest <= 16 * 3000 * 4 < weight.nbytes
    with torch.no_grad(), Held() as held:
        assert not token_logprobs(x, weight.requires_grad_(), targets).requires_grad
    assert held.largest <= 16 * 3000 * 4


def test_what_does_not_fit_is_named():
    x, weight, targets = make(5)
    with pytest.raises(ValueError, match=r"x \(5, 6\), weight \(11, 6\) and targets \(4,\) do not fit"):
        token_scores(x, weight, targets[:4])
