"""The kernels of the norm that spans ranks, on a GPU, at the sizes of a half of Zamba2-2.7B's mixers."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from zamba_lm.train.scale import span_norm as parts

pytestmark = pytest.mark.gpu


def test_kernels_do_what_the_definition_does():
    generator = torch.Generator("cuda").manual_seed(0)
    T, width = 300, 2560
    h, y, d = (torch.randn(T, n, generator=generator, device="cuda").bfloat16() for n in (2 * width + 296, width, width))
    z, gain = h[:, :width], torch.randn(width, generator=generator, device="cuda")
    scale, along = torch.rand(T, generator=generator, device="cuda"), torch.randn(T, generator=generator, device="cuda")
    cases = [
        (parts.sums_triton, parts.sums, (y, z)),
        (parts.sums_triton, parts.sums, (y, z, d, gain)),
        (parts.scaled_triton, parts.scaled, (y, z, gain, scale)),
        (parts.back_triton, parts.back, (d, y, z, gain, scale, along)),
    ]
    for kernel, definition, given in cases:
        found, expected = kernel(*given), definition(*given)
        for mine, right in zip(found, expected) if isinstance(found, tuple) else [(found, expected)]:
            assert_within("op", mine.cpu(), right.cpu())
