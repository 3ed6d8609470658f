"""Which source comes next, and how a place in the stream is written down."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zamba_lm.errors import ZambaError
from zamba_lm.train.data import Mixture, Rows, Stage, replay

WEIGHTS = {"texts": 0.75, "chats": 0.25}


@pytest.fixture
def sources(texts, chats):
    return {"texts": Rows(texts, 64), "chats": Rows(chats, 64)}


def names(mixture, n):
    return [mixture.advance()[0] for _ in range(n)]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 9))
def test_every_stretch_has_its_shares(texts, weights, seed):
    rows = Rows(texts, 64)
    mixture = Mixture({str(i): rows for i in range(len(weights))}, {str(i): w for i, w in enumerate(weights)}, seed=seed)
    taken = dict.fromkeys(mixture.sources, 0)
    for n, name in enumerate(names(mixture, 300), 1):
        taken[name] += 1
        assert all(abs(taken[str(i)] - n * w / sum(weights)) < len(weights) for i, w in enumerate(weights))


def test_every_row_of_a_source_comes_once_an_epoch(sources):
    mixture = Mixture(sources, WEIGHTS)
    drawn = [mixture.advance() for _ in range(1500)]
    for name, rows in sources.items():
        mine = [(epoch, index) for one, epoch, index in drawn if one == name]
        expected = ((epoch, index) for epoch in itertools.count() for index in range(rows.count(epoch)))
        assert mine == list(itertools.islice(expected, len(mine))) and mine[-1][0] >= 1


def test_a_weight_of_nothing_is_nothing(sources):
    assert set(names(Mixture(sources, {"texts": 1.0, "chats": 0.0}), 50)) == {"texts"}


def test_stages_follow_one_another_and_the_last_one_stays(sources):
    stages = [Stage({"texts": 1.0}, rows=10), Stage({"chats": 1.0}, rows=5), Stage(WEIGHTS)]
    drawn = names(Mixture(sources, stages), 215)
    assert drawn[:10] == ["texts"] * 10 and drawn[10:15] == ["chats"] * 5
    assert abs(drawn[15:].count("texts") - 150) <= 2


def test_a_last_stage_with_rows_stays_all_the_same(sources):
    assert names(Mixture(sources, [Stage({"texts": 1.0}, rows=2)]), 5) == ["texts"] * 5


def test_replay_keeps_the_shares_of_the_old_data():
    mixed = replay({"anneal": 3.0, "chat": 1.0}, {"web": 8.0, "books": 2.0})
    assert mixed == pytest.approx({"web": 0.48, "books": 0.12, "anneal": 0.3, "chat": 0.1})
    assert replay({"a": 1.0}, {"a": 1.0, "b": 1.0}, share=0.5) == {"a": 0.75, "b": 0.25}
    with pytest.raises(ZambaError, match="share is 60, expected"):
        replay({"a": 1.0}, {"b": 1.0}, share=60)


def test_iterating_yields_the_rows_named(sources):
    one, other = Mixture(sources, WEIGHTS), Mixture(sources, WEIGHTS)
    for item in itertools.islice(one, 20):
        assert item["input_ids"].tolist() == other.item(*other.advance())["input_ids"].tolist()


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"text": 1.0}, r"the weights name 'text' \(did you mean texts\?\); sources are texts, chats"),
        ({"texts": -1.0}, "the weight of 'texts' is -1.0, expected a number, 0 or more"),
        ({"texts": float("nan")}, "the weight of 'texts' is nan"),
        ({"texts": "1"}, "the weight of 'texts' is '1'"),
        ({"texts": 0, "chats": 0.0}, "all weights are zero"),
        ({}, "all weights are zero"),
        ([], "every stage but the last needs its number of rows"),
        ([Stage(WEIGHTS), Stage(WEIGHTS)], "every stage but the last needs its number of rows"),
    ],
)
def test_weights_that_make_no_sense(sources, weights, told):
    with pytest.raises(ZambaError, match=told):
        Mixture(sources, weights)


def test_sources_that_do_not_go_together(sources, chats, monkeypatch):
    with pytest.raises(ZambaError, match="a mixture without sources"):
        Mixture({}, {})
    with pytest.raises(ZambaError, match="'texts' has rows of 64 tokens and 'long' of 128"):
        Mixture(sources | {"long": Rows(chats, 128)}, WEIGHTS)
    monkeypatch.setattr(chats, "tokenizer", chats.tokenizer | {"sha256": "other"})
    with pytest.raises(ZambaError, match="were made with different tokenizers"):
        Mixture(sources, WEIGHTS)


# places


STAGES = [Stage({"texts": 1.0}, rows=37), Stage(WEIGHTS, rows=201), Stage({"chats": 1.0})]


@given(st.integers(0, 700))
def test_a_place_written_down_anywhere_is_found_again(texts, chats, n):
    sources = {"texts": Rows(texts, 64), "chats": Rows(chats, 64)}
    first, second = Mixture(sources, STAGES, seed=3), Mixture(sources, STAGES, seed=3)
    names(first, n)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.rows == n and [first.advance() for _ in range(50)] == [second.advance() for _ in range(50)]


def test_a_place_written_down_does_not_move_with_the_stream(sources):
    mixture = Mixture(sources, WEIGHTS)
    names(mixture, 5)
    state = mixture.state_dict()
    told = json.dumps(state)
    names(mixture, 5)
    mixture.load_state_dict(state)
    names(mixture, 5)
    assert json.dumps(state) == told


def test_a_place_in_another_stream_is_refused(sources, texts):
    state = Mixture(sources, WEIGHTS).state_dict()
    with pytest.raises(ZambaError, match="belongs to other weights, stages or another seed"):
        Mixture(sources, {"texts": 1.0}).load_state_dict(state)
    with pytest.raises(ZambaError, match="belongs to other weights"):
        Mixture(sources, WEIGHTS, seed=1).load_state_dict(state)
    with pytest.raises(ZambaError, match=r"source 'texts' .* is not what it was when the place was saved"):
        Mixture(sources | {"texts": Rows(texts, 64, seed=9)}, WEIGHTS).load_state_dict(state)
    with pytest.raises(ZambaError, match=r"this mixture has no source 'chats' \(did you mean chat\?\)"):
        Mixture({"texts": sources["texts"], "chat": sources["chats"]}, {"texts": 1.0}).load_state_dict(state)
    with pytest.raises(ZambaError, match="the saved place has no source 'more'"):
        Mixture(sources | {"more": sources["texts"]}, WEIGHTS).load_state_dict(state)
    with pytest.raises(ZambaError, match="the saved place has version 7, this program reads 1"):
        Mixture(sources, WEIGHTS).load_state_dict(state | {"version": 7})


def test_another_mixture_can_go_on_with_the_rows_not_seen_yet(sources):
    before = Mixture({"texts": sources["texts"]}, {"texts": 1.0})
    names(before, 30)
    after = Mixture(sources, replay({"chats": 1.0}, {"texts": 1.0}))
    after.continue_from(json.loads(json.dumps(before.state_dict())))
    first = {name: (epoch, index) for name, epoch, index in reversed([after.advance() for _ in range(10)])}
    assert first == {"texts": (0, 30), "chats": (0, 0)} and after.rows == 10
    with pytest.raises(ZambaError, match="is not what it was"):
        Mixture({"texts": sources["chats"]}, {"texts": 1.0}).continue_from(before.state_dict())
