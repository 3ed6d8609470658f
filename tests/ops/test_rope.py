"""rope: multiplication by a complex number of length one, and what follows from it."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import assert_gradients
from zamba_lm.ops.rope import angles, rope


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def turned(x_THd, positions, base):
    """Channels i and i + d / 2 as real and imaginary part, times e^(i position base^(-2i / d))."""
    d = x_THd.shape[-1]
    z = torch.complex(x_THd[..., : d // 2].double(), x_THd[..., d // 2 :].double())
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    z = z * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([z.real, z.imag], dim=-1)


@pytest.mark.parametrize("width", [2, 8, 80, 224])
@pytest.mark.parametrize("base", [1e4, 8e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_rotation(width, base, dtype):
    positions = [0, 1, 2, 17, 0, 1, 64]  # of two sequences: positions need not ascend
    x = random(len(positions), 3, width, dtype=dtype)
    y = rope(x, angles(torch.tensor(positions), width, base))
    assert y.dtype == dtype
    assert_within("op", y, turned(x, positions, base))


def test_position_zero_changes_nothing():
    x = random(1, 2, 8)
    assert torch.equal(rope(x, angles(torch.tensor([0]), 8, 1e4)), x)


def test_lengths_stay():
    x = random(50, 2, 8)
    y = rope(x, angles(torch.arange(50), 8, 1e4))
    assert_within("op", y.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("shift", [1, 100, 4000])
def test_scores_depend_on_the_distance_alone(shift):
    q, k = random(20, 2, 8), random(20, 2, 9)[..., :8]

    def scores(start):
        turns = angles(torch.arange(start, start + 20), 8, 1e4)
        return torch.einsum("thd,uhd->htu", rope(q, turns), rope(k, turns))

    unturned = torch.einsum("thd,uhd->htu", q, k)
    assert (scores(0) - unturned).abs().max() > 1
    # float32 keeps an angle of 4020 to 2.4e-4, and 8 products of numbers up to 4 pass it on
    assert (scores(shift) - scores(0)).abs().max() < 1e-5 + shift * 2e-6


def test_angles():
    cos, sin = angles(torch.tensor([0, 3]), 6, 100.0)
    expected = torch.tensor([[0.0, 0.0, 0.0], [3.0, 3 * 100 ** (-1 / 3), 3 * 100 ** (-2 / 3)]], dtype=torch.float64)
    assert cos.shape == sin.shape == (2, 3)
    assert_within("op", cos, expected.cos())
    assert_within("op", sin, expected.sin())


def test_gradients():
    turns = angles(torch.tensor([5, 6, 7]), 8, 1e4)
    inputs = {"x": random(3, 2, 8)}
    assert_gradients(lambda x: [rope(x, turns)], lambda x: [turned(x, [5, 6, 7], 1e4)], inputs)


def test_odd_head_sizes_are_refused():
    with pytest.raises(ValueError, match="head_dim is 7, RoPE needs an even size"):
        angles(torch.arange(3), 7, 1e4)
