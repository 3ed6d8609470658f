"""Sums over ranks: by definition, and the kernels beside it."""

import pytest
import torch
import torch.nn.functional as F

from tests.numerics.tolerances import assert_within
from zamba_lm.ops.gpu import interpreted
from zamba_lm.parallel.total import tail, total, total_reference, with_square, with_square_reference

EPS = 1e-5


@pytest.mark.parametrize("span", [1, 2, 4])
def test_norming_shares_and_rescaling_them_is_norming_the_whole(span):
    generator = torch.Generator().manual_seed(span)
    D, width, ranks = 13, 6, 4
    y_TRI = torch.randn(5, ranks, width, generator=generator) * torch.tensor([0.1, 1, 3, 30])[:, None]
    z_TRI, gain_RI = torch.randn(5, ranks, width, generator=generator), torch.randn(ranks, width, generator=generator)
    W_RDI = torch.randn(ranks, D, width, generator=generator)
    residual = torch.randn(5, D, generator=generator)
    gated = (y_TRI * F.silu(z_TRI)).double()
    normed = F.rms_norm(gated.unflatten(1, (-1, span)).flatten(-2), (span * width,), eps=EPS).view(5, ranks, width)
    expected = residual + torch.einsum("tri,rdi->td", normed * gain_RI, W_RDI.double())
    rows = []
    for r in range(ranks):
        part = F.rms_norm(gated[:, r], (width,), eps=EPS).float() * gain_RI[r] @ W_RDI[r].T
        rows.append(with_square(part, y_TRI[:, r], z_TRI[:, r]) if span > 1 else part)
    assert_within("op", total(torch.stack(rows), residual, D=D, span=span, eps=EPS), expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("T", "D", "width", "ranks", "span"), [(1, 16, 12, 2, 2), (3, 61, 33, 4, 2), (2, 1030, 70, 2, 1)])
def test_kernels_do_what_the_reference_does(dtype, T, D, width, ranks, span):
    generator = torch.Generator().manual_seed(D)
    rows = []
    for r in range(ranks):
        part, residual = torch.randn(2, T, D, generator=generator).to(dtype)
        y, z = torch.randn(T, width, generator=generator) * (r + 1), torch.randn(T, 2 * width, generator=generator).to(dtype)
        z = z[:, ::2] if r % 2 else z[:, :width] if r else None
        rows.append(expected := with_square_reference(part, y, z))
        with interpreted():
            actual = with_square(part, y, z)
        assert torch.equal(actual[:, :D], part)
        assert_within("op", *(row[:, tail(D) :].view(torch.float32)[:, 0] for row in (actual, expected)))
    parts = torch.stack(rows)
    for rest in (residual, None, torch.randn(D, T).T.to(dtype)):
        with interpreted():
            actual = total(parts, rest, D=D, span=span, eps=EPS)
        assert_within("op", actual, total_reference(parts, rest, D, span, EPS))


def test_what_does_not_fit_is_refused():
    parts = torch.zeros(3, 2, 8)
    with pytest.raises(ValueError, match="spans of 2 ranks"):
        total(parts, D=8, span=2)
    with pytest.raises(ValueError, match="rows of 8"):
        total(parts, torch.zeros(2, 7), D=8)
