"""The gated norm over several ranks: the definition's gradients, and the kernels beside it."""

import pytest
import torch
import torch.nn.functional as F

from tests.numerics.tolerances import assert_within
from zamba_lm.ops.gpu import interpreted
from zamba_lm.train.scale import span_norm as parts
from zamba_lm.train.scale.triton import back_triton, scaled_triton, sums_triton

T, WIDTH, RANKS, EPS = 5, 12, 3, 1e-5


def given(seed=0):
    generator = torch.Generator().manual_seed(seed)
    y, z, d = torch.randn(3, T, RANKS * WIDTH, generator=generator, dtype=torch.float64)
    return y, z, d, torch.randn(RANKS * WIDTH, generator=generator, dtype=torch.float64)


def test_parts_add_up_to_the_norm_of_the_whole_and_its_gradients():
    y, z, d, gain = (one.requires_grad_(True) for one in given())
    expected = F.rms_norm(y * F.silu(z), (RANKS * WIDTH,), eps=EPS) * gain
    expected.backward(d)
    ranks = [tuple(one.detach()[..., r * WIDTH : (r + 1) * WIDTH].float() for one in (y, z, d, gain)) for r in range(RANKS)]
    scale = torch.rsqrt(sum(parts.sums(y, z) for y, z, _, _ in ranks) / (RANKS * WIDTH) + EPS)
    along = sum(parts.sums(y, z, d, gain) for y, z, d, gain in ranks) * scale / (RANKS * WIDTH)
    assert_within("op", torch.cat([parts.scaled(y, z, w, scale) for y, z, _, w in ranks], 1), expected.detach().float())
    found = [torch.cat(one, -1) for one in zip(*(parts.back(d, y, z, w, scale, along) for y, z, d, w in ranks))]
    for mine, right in zip(found, (y.grad, z.grad, gain.grad)):
        assert_within("op", mine, right.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_do_what_the_definition_does(dtype):
    y, z, d, gain = (one.float() for one in given(1))
    y, d, z = y.to(dtype), d.to(dtype), torch.stack([z, z], 1).flatten(0, 1)[::2].to(dtype)  # every second row of something
    scale, along = torch.rand(T), torch.randn(T)
    cases = [
        (sums_triton, parts.sums, (y, z)),
        (sums_triton, parts.sums, (y, z, d, gain)),
        (scaled_triton, parts.scaled, (y, z, gain, scale)),
        (back_triton, parts.back, (d, y, z, gain, scale, along)),
    ]
    for kernel, definition, given_ in cases:
        with interpreted():
            found = kernel(*given_)
        expected = definition(*given_)
        for mine, right in zip(found, expected) if isinstance(found, tuple) else [(found, expected)]:
            assert mine.dtype == right.dtype
            assert_within("op", mine, right)
