"""What each rank's trainer gets, and that a run goes on exactly where it stopped, with any number of ranks."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from zamba_lm.errors import ZambaError
from zamba_lm.train.data import Mixture, Rows, Stage, Stream, collate

STAGES = [Stage({"texts": 1.0}, rows=21), Stage({"texts": 0.6, "chats": 0.4})]


@pytest.fixture
def mixture(texts, chats):
    return lambda: Mixture({"texts": Rows(texts, 64, seed=1), "chats": Rows(chats, 64)}, STAGES, seed=2)


def global_rows(streams, n):
    """The next n rows of all ranks together, in the stream's order."""
    iterators = [iter(stream) for stream in streams]
    return [next(iterators[i % len(iterators)])["input_ids"].tolist() for i in range(n)]


def ranks(mixture, world, state=None):
    streams = [Stream(mixture(), rank=rank, world=world) for rank in range(world)]
    for stream in streams:
        if state:
            stream.load_state_dict(json.loads(json.dumps(state)))
    return streams


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 60), st.integers(0, 3))
def test_a_run_goes_on_with_another_number_of_ranks(texts, chats, before, after, steps, ahead):
    def mixture():
        return Mixture({"texts": Rows(texts, 64, seed=1), "chats": Rows(chats, 64)}, STAGES, seed=2)

    whole = [item["input_ids"].tolist() for item in itertools.islice(mixture(), before * (steps + 3) + after * 12)]
    first = ranks(mixture, before)
    consumed = before * steps
    assert global_rows(first, consumed + before * ahead)[:consumed] == whole[:consumed]
    states = [stream.state_dict(rows=consumed) for stream in first]
    assert all(state == states[0] for state in states) and states[0]["rows"] == consumed
    assert global_rows(ranks(mixture, after, states[0]), 12 * after) == whole[consumed : consumed + 12 * after]


def test_a_loader_that_fetches_ahead_does_no_harm(mixture):
    stream = Stream(mixture())
    batches = iter(DataLoader(stream, batch_size=4, collate_fn=collate))
    seen = [next(batches)["input_ids"] for _ in range(5)]
    state = stream.state_dict(rows=12)  # three of five were trained on
    again = Stream(mixture())
    again.load_state_dict(state)
    batches = iter(DataLoader(again, batch_size=4, collate_fn=collate))
    assert all(torch.equal(next(batches)["input_ids"], seen[i]) for i in (3, 4))


def test_without_a_number_the_place_is_behind_all_that_was_given_out(mixture):
    stream = Stream(mixture(), rank=1, world=3)
    list(itertools.islice(stream, 5))
    assert stream.rows == 15 and stream.state_dict()["rows"] == 15


def test_places_can_be_asked_for_as_training_goes_on_but_not_backwards(mixture):
    stream = Stream(mixture())
    rows = iter(stream)
    for consumed in (3, 3, 8):
        while stream.rows < consumed + 2:
            next(rows)
        assert stream.state_dict(rows=consumed)["rows"] == consumed
    for wrong in (7, 11):
        with pytest.raises(ZambaError, match=f"the place after {wrong} rows; known are those from 8 to 10"):
            stream.state_dict(rows=wrong)


def test_an_iterator_begun_anew_goes_on(mixture):
    stream, whole = Stream(mixture(), world=2), list(itertools.islice(mixture(), 8))
    got = [item["input_ids"].tolist() for _ in range(2) for item in itertools.islice(stream, 2)]
    assert got == [item["input_ids"].tolist() for item in whole[::2]]


def test_workers_are_refused(mixture):
    with pytest.raises(ZambaError, match="num_workers must be 0"):
        next(iter(DataLoader(Stream(mixture()), batch_size=2, collate_fn=collate, num_workers=1)))


@pytest.mark.parametrize(("rank", "world"), [(-1, 1), (1, 1), (0, 0)])
def test_ranks_that_are_none(mixture, rank, world):
    with pytest.raises(ZambaError, match="ranks count from 0"):
        Stream(mixture(), rank=rank, world=world)


def test_a_batch_is_its_rows_one_below_the_other_and_lengths_end_to_end(mixture):
    items = list(itertools.islice(mixture(), 3))
    batch = collate(items)
    assert batch["input_ids"].shape == batch["labels"].shape == (3, 64) and batch["input_ids"].is_contiguous()
    assert all(torch.equal(batch[key][i], items[i][key]) for key in ("input_ids", "labels") for i in range(3))
    assert batch["lengths"] == sum((item["lengths"] for item in items), ()) and sum(batch["lengths"]) == 3 * 64
