"""Documents into rows: nothing lost, nothing twice, nothing cut that need not be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zamba_lm.train.data.packing import OPEN, Cut, Whole, shuffled

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200)


def packed(kind, lengths, row):
    """Segments of every row; document i starts at 1000 i, so that it is known again."""
    plan = kind(np.arange(len(lengths)) * 1000, np.array(lengths), row)
    return [plan.segments(index) for index in range(plan.count)]


@given(LENGTHS, st.integers(2, 70))
def test_cut_rows_are_full_and_hold_every_token_once_in_order(lengths, row):
    rows = packed(Cut, lengths, row)
    assert [sum(n for _, n in segments) for segments in rows[:-1]] == [row] * (len(rows) - 1) and rows[-1]
    tokens = [start + i for segments in rows for start, n in segments for i in range(n)]
    assert tokens == [1000 * document + i for document, n in enumerate(lengths) for i in range(n)]


@given(LENGTHS, st.integers(60, 200))
def test_whole_rows_hold_every_document_once_uncut(lengths, row):
    rows = packed(Whole, lengths, row)
    assert all(0 < sum(n for _, n in segments) <= row for segments in rows)
    assert sorted(piece for segments in rows for piece in segments) == [(1000 * i, n) for i, n in enumerate(lengths)]


@given(LENGTHS, st.integers(60, 200))
def test_no_two_whole_rows_could_have_been_one(lengths, row):
    """So at least half of what is packed is no padding, whatever the lengths."""
    filled = sorted(sum(n for _, n in segments) for segments in packed(Whole, lengths, row))
    assert len(filled) < 2 or filled[0] + filled[1] > row


def test_best_fit_takes_the_row_with_the_least_room():
    assert packed(Whole, [6, 7, 3, 4], 10) == [[(0, 6), (3000, 4)], [(1000, 7), (2000, 3)]]


def test_few_rows_stay_open_and_little_is_wasted():
    lengths = np.random.default_rng(0).integers(20, 400, 20 * OPEN)
    rows = packed(Whole, lengths, 1024)
    assert sum(lengths) / (len(rows) * 1024) > 0.99


def test_a_document_longer_than_a_row_is_not_packed_whole():
    with pytest.raises(ValueError, match="a document of 11 tokens in rows of 10"):
        packed(Whole, [3, 11], 10)


@given(st.integers(0, 500), st.integers(0, 5), st.integers(0, 5))
def test_an_order_is_an_order_and_its_key_decides_it(n, seed, epoch):
    order = shuffled(n, seed, epoch)
    assert sorted(order) == list(range(n)) and np.array_equal(order, shuffled(n, seed, epoch))
    assert n < 10 or not np.array_equal(order, shuffled(n, seed, epoch + 1))


def test_an_order_is_the_same_on_every_machine():
    assert shuffled(8, 0, 0, "documents").tolist() == [2, 0, 7, 5, 4, 6, 1, 3]


def test_every_place_is_as_likely():
    first = np.bincount([shuffled(5, seed)[0] for seed in range(2000)])
    assert first.min() > 300
