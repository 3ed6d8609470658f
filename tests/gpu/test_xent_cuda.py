"""The kernel of xent and token_scores on a GPU at published shapes: several chunks, odd and very long rows, every dtype."""

import pytest
import torch
import torch.nn.functional as F

from tests.numerics.tolerances import assert_within
from zamba_lm.ops.dispatch import record
from zamba_lm.ops.xent import token_scores, xent
from zamba_lm.ops.xent.triton import tokens

pytestmark = pytest.mark.gpu

SHAPES = {"2.7b": (500, 2560, 32000), "7b": (65, 3712, 32000), "pebble": (20000, 384, 8192), "odd": (301, 65, 1001)}
SHAPES |= {"few": (7, 64, 2), "beyond registers": (9, 64, 70001)}


def make(total, width, vocabulary, dtype):
    g = torch.Generator(device="cuda").manual_seed(total)
    x = torch.randn(total, width, device="cuda", generator=g).to(dtype)
    weight = (torch.randn(vocabulary, width, device="cuda", generator=g) * width**-0.5).to(dtype)
    targets = torch.randint(vocabulary, (total,), device="cuda", generator=g)
    targets[3::9] = -100
    return x, weight, targets


def run(function, x, weight, scale):
    x, weight = (v.detach().clone().requires_grad_() for v in (x, weight))
    loss = function(x, weight)
    (loss * scale).backward()
    return loss.detach(), x.grad, weight.grad


def right(x, weight, targets):
    return F.cross_entropy(x @ weight.T, targets.clamp(min=-1), ignore_index=-1, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients(shape, dtype):
    x, weight, targets = make(*SHAPES[shape], dtype)
    precise = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[
        dtype
    ]  # logits are of this dtype, and of the order of 1
    with record() as calls:
        loss, dx, dweight = run(lambda x, w: xent(x, w, targets), x, weight, 0.5)
    assert calls == [("xent", "triton")]
    expected, expected_dx, expected_dweight = run(lambda x, w: right(x, w, targets), x.double(), weight.double(), 0.5)
    assert abs(loss - expected) < precise * (expected + len(x)) and dx.dtype == dweight.dtype == dtype
    work = torch.float32 if dtype == torch.float32 else torch.bfloat16
    for got, want in ((dx, expected_dx), (dweight, expected_dweight)):
        spread = want.square().mean().sqrt()
        assert_within("gradient", got.double() / spread, want / spread, dtype=work)
    assert torch.equal(dx[targets < 0], torch.zeros_like(dx[targets < 0]))
    with torch.no_grad():
        assert abs(xent(x, weight, targets) - expected) < precise * (expected + len(x))


def test_autocast_and_a_master_weight_in_float32():
    x, weight, targets = make(5000, 384, 8192, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        loss, dx, dweight = run(lambda x, w: xent(x, w, targets), x, weight, 1.0)
    expected, *_ = run(lambda x, w: right(x, w, targets), x.double(), weight.double(), 1.0)
    assert loss.dtype == dx.dtype == dweight.dtype == torch.float32
    assert abs(loss / expected - 1) < 5e-3


def scored(x, weight, targets):
    """TokenScores of float64."""
    logits = x @ weight.T
    logp, counted = F.log_softmax(logits, -1), targets >= 0
    hit = logp.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return (
        hit * counted,
        -(logp.exp() * logp).sum(-1) * counted,
        logits.mean(-1) * counted,
        (logits.argmax(-1) == targets) & counted,
    )


def weighted(function, x, weight, frozen):
    """Scores, and gradients of a sum in which every token weighs differently."""
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_(not frozen)
    scores = function(x, weight)
    (scores[0] * torch.linspace(-1, 2, len(x), device="cuda", dtype=scores[0].dtype)).sum().backward()
    return scores, [one.grad for one in (x, weight) if one.requires_grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["kept", "made again", "frozen head"])
@pytest.mark.parametrize("shape", ["2.7b", "odd", "few", "beyond registers"])
def test_token_scores(shape, how, dtype, monkeypatch):
    monkeypatch.setattr(tokens, "KEPT", 0 if how == "made again" else 1 << 30)
    x, weight, targets = make(*SHAPES[shape], dtype)
    targets[::5] = torch.where(targets[::5] < 0, targets[::5], (x @ weight.T).argmax(-1)[::5])
    with record() as calls:
        scores, gradients = weighted(lambda x, w: token_scores(x, w, targets), x, weight, how == "frozen head")
    assert calls == [("token_scores", "triton")]
    expected, right = weighted(lambda x, w: scored(x, w, targets), x.double(), weight.double(), how == "frozen head")
    precise = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    for got, want in zip(scores[:3], expected[:3]):
        assert (got - want).norm() <= precise * (want.norm() + len(x) ** 0.5)
    assert (scores.top_T != expected[3]).double().mean() < 0.02  # likeliest in this dtype and likeliest may be two tokens
    for got, want in zip(gradients, right, strict=True):
        assert got.dtype == dtype and (got - want).norm() <= max(precise, 1e-5) * want.norm()
    assert torch.equal(gradients[0][targets < 0], torch.zeros_like(gradients[0][targets < 0]))
