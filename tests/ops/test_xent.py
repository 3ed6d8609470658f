"""xent: torch's cross-entropy in float64, whatever the chunks, without all logits at once."""

import pytest
import torch
import torch.nn.functional as F

from tests.numerics.tolerances import assert_within
from tests.ops.memory import Held
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.xent import compiled, reference, xent


def make(total, *, width=6, vocabulary=11, ignored=(), dtype=torch.float32):
    g = torch.Generator().manual_seed(total)
    x, weight = torch.randn(total, width, generator=g).to(dtype), torch.randn(vocabulary, width, generator=g).to(dtype)
    targets = torch.randint(vocabulary, (total,), generator=g)
    targets[list(ignored)] = -1
    return x, weight, targets


def expected(x, weight, targets, scale=1.0):
    """(loss, gradient of x, gradient of the weight), by torch in float64."""
    x, weight = (v.detach().double().requires_grad_() for v in (x, weight))
    loss = F.cross_entropy(x @ weight.T, targets, ignore_index=-1, reduction="sum")
    (scale * loss).backward()
    return loss, x.grad, weight.grad


def actual(x, weight, targets, scale=1.0):
    x, weight = (v.detach().clone().requires_grad_() for v in (x, weight))
    loss = xent(x, weight, targets)
    (scale * loss).backward()
    return loss, x.grad, weight.grad


@pytest.mark.parametrize("total", [1, 2, 63, 64, 65, 300])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_value_and_gradients(total, scale):
    inputs = make(total)
    for got, right in zip(actual(*inputs, scale), expected(*inputs, scale), strict=True):
        assert got.dtype == torch.float32
        assert_within("gradient", got, right)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 65, 1000])
def test_chunks_do_not_matter(chunk, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", chunk)
    inputs = make(65, ignored=(0, 6, 7, 64))
    for got, right in zip(actual(*inputs), expected(*inputs), strict=True):
        assert_within("gradient", got, right)


@pytest.mark.parametrize("ignored", [(0,), (64,), range(1, 65), range(65)])
@pytest.mark.parametrize("mark", [-1, -100])
def test_negative_targets_do_not_count(ignored, mark):
    x, weight, targets = make(65, ignored=ignored)
    loss, dx, dweight = actual(x, weight, torch.where(targets < 0, mark, targets))
    for got, right in zip((loss, dx, dweight), expected(x, weight, targets), strict=True):
        assert_within("gradient", got, right)
    assert torch.equal(dx[list(ignored)], torch.zeros(len(ignored), 6))


def test_nothing_to_predict_costs_nothing():
    x, weight, targets = make(3)
    loss, dx, dweight = actual(x[:0], weight, targets[:0])
    assert loss == 0 and dx.shape == (0, 6) and torch.equal(dweight, torch.zeros_like(weight))


def test_large_logits():
    """exp of a logit of 1000 is beyond float32; its share of the sum is not."""
    x, weight, targets = make(20)
    loss, dx, _ = actual(300 * x, weight, targets)
    right, right_dx, _ = expected(300 * x, weight, targets)
    assert loss.isfinite() and abs(loss / right - 1) < 1e-6
    assert_within("gradient", dx, right_dx)


def test_bfloat16():
    inputs = make(65, dtype=torch.bfloat16, ignored=(3,))
    loss, dx, dweight = actual(*inputs)
    right, right_dx, right_dweight = expected(*inputs)
    assert loss.dtype == torch.float32 and dx.dtype == dweight.dtype == torch.bfloat16
    assert abs(loss / right - 1) < 5e-3
    assert_within("gradient", dx, right_dx)
    assert_within("gradient", dweight, right_dweight)


def test_autocast_multiplies_in_bfloat16_and_returns_gradients_in_the_inputs_dtype():
    x, weight, targets = make(65)
    with torch.autocast("cpu", torch.bfloat16):
        loss, dx, dweight = actual(x, weight, targets)
    in_bfloat16 = actual(x.bfloat16(), weight.bfloat16(), targets)
    assert loss.dtype == dx.dtype == dweight.dtype == torch.float32
    assert torch.equal(loss, in_bfloat16[0])
    assert torch.equal(dx, in_bfloat16[1].float()) and torch.equal(dweight, in_bfloat16[2].float())


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_a_gradient_alone_is_the_one_of_both(frozen):
    x, weight, targets = make(9)
    _, dx, dweight = actual(x, weight, targets)
    x.requires_grad_(frozen != "x")
    weight.requires_grad_(frozen != "weight")
    xent(x, weight, targets).backward()
    moving, gradient = (weight, dweight) if frozen == "x" else (x, dx)
    assert torch.equal(moving.grad, gradient)
    assert (x if frozen == "x" else weight).grad is None


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_is_made(quiet):
    """Evaluation must not pay for a (V, D) gradient because the weight is a parameter; what it counts is the same."""
    x, weight, targets = make(40, width=64, vocabulary=100, ignored=(1, 7))
    weight.requires_grad_()
    with quiet(), Held() as held:
        loss = xent(x, weight, torch.where(targets < 0, -100, targets))
    assert not loss.requires_grad
    assert_within("gradient", loss, expected(x, weight, targets)[0])
    assert held.largest <= 40 * 100 * 4 < weight.nbytes


def test_the_compiled_way_is_taken_by_name_and_agrees(monkeypatch):
    """Traced and differentiated as in training; a backend that needs no C++ compiler stands in for the last stage."""
    traced = torch.compile(reference.loss_and_gradient, backend="aot_eager", dynamic=False)
    parts = []
    monkeypatch.setattr(compiled, "_compiled", lambda: lambda *part: parts.append(len(part[0])) or traced(*part))
    monkeypatch.setattr(reference, "CHUNK", 60)
    inputs = make(65, ignored=(3,))
    with force(xent="compiled"), record() as calls:
        results = actual(*inputs)
    assert calls == [("xent", "compiled")] and parts == [60, 5]
    for got, right in zip(results, expected(*inputs), strict=True):
        assert_within("gradient", got, right)


def test_never_all_logits(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 16)
    x, weight, targets = make(512, vocabulary=1000)
    with Held() as held:
        actual(x, weight, targets)
    assert held.largest <= max(16 * 1000 * 4, weight.nbytes, x.nbytes)


def test_what_does_not_fit_is_named():
    x, weight, targets = make(5)
    for wrong in ((x[None], weight, targets), (x, weight, targets[:4]), (x, weight[:, :3], targets)):
        with pytest.raises(ValueError, match=r"x \(.*\), weight \(11, \d\).* targets \(\d,\) do not fit"):
            xent(*wrong)
