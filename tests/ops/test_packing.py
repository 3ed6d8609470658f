"""Packing: where each sequence lies, and which neighbours make a rectangle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zamba_lm.ops.packing import Packing, Run, over_runs

lengths = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def test_runs():
    packing = Packing([2, 2, 3, 1, 1, 1, 2])
    assert packing.runs == (
        Run(slice(0, 2), slice(0, 4), 2, 2),
        Run(slice(2, 3), slice(4, 7), 1, 3),
        Run(slice(3, 6), slice(7, 10), 3, 1),
        Run(slice(6, 7), slice(10, 12), 1, 2),
    )
    assert packing.total == 12 and len(packing) == 7


@given(lengths)
def test_runs_cover_every_token_once_and_are_as_long_as_can_be(lengths):
    packing = Packing(lengths)
    assert [n for run in packing.runs for n in [run.length] * run.n] == lengths
    assert [s for run in packing.runs for s in range(run.sequences.start, run.sequences.stop)] == list(range(len(lengths)))
    assert [t for run in packing.runs for t in range(run.tokens.start, run.tokens.stop)] == list(range(sum(lengths)))
    assert all(a.length != b.length for a, b in zip(packing.runs, packing.runs[1:]))


@given(lengths)
def test_cumulative_lengths_and_last_tokens(lengths):
    packing = Packing(lengths)
    cu_seqlens, last = packing.cu_seqlens(), packing.last()
    assert cu_seqlens.dtype == torch.int32 and cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert last.dtype == torch.int64 and last.tolist() == [end - 1 for end in cu_seqlens.tolist()[1:]]


def test_cumulative_lengths_go_where_they_are_wanted():
    assert Packing([1, 2]).cu_seqlens("meta").device.type == Packing([1, 2]).last("meta").device.type == "meta"


@pytest.mark.parametrize("device", [None, "cpu"])
def test_asking_twice_gives_the_same(device):
    packing = Packing([3, 4])
    packing.last(device).add_(100)
    assert packing.last(device).tolist() == [2, 6] and packing.cu_seqlens(device).tolist() == [0, 3, 7]


@pytest.mark.parametrize(
    ("wrong", "named"), [([], r"\(\)"), ([0], r"\(0,\)"), ([3, 0, 2], r"\(3, 0, 2\)"), ([3, -1], r"\(3, -1\)")]
)
def test_wrong_lengths_are_named(wrong, named):
    with pytest.raises(ValueError, match=rf"sequence lengths are {named}, expected at least one sequence and at least 1 token"):
        Packing(wrong)


def test_lengths_may_be_any_iterable_of_integers():
    assert Packing(torch.tensor([2, 3])).lengths == Packing(map(len, ("ab", "abc"))).lengths == (2, 3)
    assert repr(Packing([2, 3])) == "Packing((2, 3))"


@given(lengths)
def test_over_runs_hands_every_sequence_its_own(lengths):
    """Sums along a sequence, started from its state: tokens in, tokens out, one state a sequence."""
    packing = Packing(lengths)
    x_T = torch.arange(1.0, packing.total + 1)
    state_S = torch.arange(len(lengths)) * 1000.0

    def rows(x_BT, state_B, nothing):
        assert nothing is None
        sums_BT = x_BT.cumsum(1) + state_B[:, None]
        return sums_BT, sums_BT[:, -1], -state_B

    sums_T, after_S, negative_S = over_runs(packing, rows, (x_T,), (state_S, None))
    expected = [part.cumsum(0) + start for part, start in zip(x_T.split(lengths), state_S, strict=True)]
    assert torch.equal(sums_T, torch.cat(expected))
    assert torch.equal(after_S, torch.stack([part[-1] for part in expected]))
    assert torch.equal(negative_S, -state_S)
