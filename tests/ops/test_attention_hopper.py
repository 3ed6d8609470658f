"""What the gradient kernels of ``trio_keys.py`` and ``trio_queries.py`` are told beforehand; they themselves run on GPUs only."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.packing import Packing

pytest.importorskip("triton")
from zamba_lm.ops.attention.triton.hopper_training import BLOCK, key_tiles, statistics

LENGTHS = (1, 63, 64, 65, 130, 2)


def test_statistics_lie_where_tiles_of_keys_look():
    """Block i of a tile holds those of queries [64 i, 64 i + 64) from its first key on, up to the sequence's end."""
    T, H, D = sum(LENGTHS), 2, 160
    generator = torch.Generator().manual_seed(0)
    y, dy = torch.randn(2, T, H, D, generator=generator, dtype=torch.bfloat16)
    lse = torch.randn(H, T, generator=generator)
    with interpreted():
        numbers = statistics(y, dy, lse, Packing(LENGTHS))
    delta = (y.double() * dy.double()).sum(-1).T
    keys = []
    for first, count, block, steps in key_tiles(LENGTHS, 128)[0]:
        end = min(e for e in torch.tensor(LENGTHS).cumsum(0).tolist() if e > first)
        logs, deltas = (numbers[:, block : block + steps, i].flatten(1) for i in (0, 1))
        assert torch.equal(logs[:, : end - first], lse[:, first:end]) and logs[:, end - first :].isinf().all()
        assert_within("op", deltas[:, : end - first], delta[:, first:end])
        assert (deltas[:, end - first :] == 0).all() and steps * BLOCK - (end - first) < BLOCK
        keys += range(first, first + count)
    assert sorted(keys) == list(range(T))
