"""Rows: the tensors a trainer gets, against the documents they are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.data.conftest import chat, pair, text
from zamba_lm.errors import ZambaError
from zamba_lm.train.data import Rows

ROW = 64


def sequences(item):
    """Ids and labels of each sequence of a row, padding left out."""
    for ids, labels in zip(item["input_ids"].split(item["lengths"]), item["labels"].split(item["lengths"])):
        if ids.any():
            yield ids.tolist(), labels.tolist()


def documents(shards):
    """Ids and labels of every document, by the definition of an entry."""
    for index in range(len(shards)):
        entries = shards.document(index).astype(int)
        ids, marked = entries % shards.mark, entries >= shards.mark
        yield ids.tolist(), np.where(marked, ids, -100).tolist()


@pytest.mark.parametrize("pack", ["cut", "whole"])
@pytest.mark.parametrize("row", [2, 33, 64, 1000])
def test_every_row_is_of_one_size_and_its_lengths_sum_to_it(texts, row, pack):
    rows = Rows(texts, row, pack=pack)
    for item in rows.epoch():
        assert item["input_ids"].shape == item["labels"].shape == (row,) and sum(item["lengths"]) == row
        assert item["input_ids"].dtype == item["labels"].dtype == torch.int64 and min(item["lengths"]) >= 1
        assert all(type(length) is int for length in item["lengths"])


@pytest.mark.parametrize("pack", ["cut", "whole"])
def test_an_epoch_is_every_token_once(texts, pack):
    rows = Rows(texts, ROW, pack=pack)
    for epoch in range(2):
        seen = sorted(token for item in rows.epoch(epoch) for ids, _ in sequences(item) for token in ids)
        assert seen == sorted(token for ids, _ in documents(texts) for token in ids)


def test_whole_chats_stay_whole_with_their_labels(chats):
    rows = Rows(chats, 256)
    assert rows.pack == "whole" and rows.cut == rows.dropped == 0
    found = sorted(pair for item in rows.epoch() for pair in sequences(item))
    assert found == sorted(documents(chats))


def test_pieces_of_cut_documents_are_sequences_of_their_own_and_together_the_documents(texts):
    rows = Rows(texts, ROW, shuffle=False)
    pieces = [pair for item in rows.epoch() for pair in sequences(item)]
    assert len(pieces) > len(texts)
    assert [token for ids, _ in pieces for token in ids] == [token for ids, _ in documents(texts) for token in ids]


@pytest.mark.parametrize("pack", ["cut", "whole"])
def test_labels_are_the_targets_but_for_the_first_token_of_every_sequence(texts, chats, pack):
    for shards in (texts, chats):
        for item in Rows(shards, ROW, pack=pack, longer="split").epoch():
            for ids, labels in sequences(item):
                assert labels[0] == -100 and all(label in (-100, token) for token, label in zip(ids, labels))
                assert shards is chats or labels[1:] == ids[1:]


def test_padding_is_a_sequence_of_its_own_that_nobody_learns(chats):
    padded = [item for item in Rows(chats, 256).epoch() if not item["input_ids"][-1]]
    assert padded
    for item in padded:
        rest = item["lengths"][-1]
        assert not item["input_ids"][-rest:].any() and (item["labels"][-rest:] == -100).all() and item["input_ids"][-rest - 1]


def test_waste_is_what_is_padding(texts, chats):
    for rows in (Rows(texts, ROW), Rows(chats, 256)):
        empty = sum(int((item["input_ids"] == 0).sum()) for item in rows.epoch(1))
        assert rows.waste(1) == pytest.approx(empty / (rows.count(1) * rows.row))
    assert Rows(texts, ROW).waste() < 0.01 and Rows(chats, 2048).waste() < 0.1


def test_the_same_seed_epoch_and_index_are_the_same_row_in_any_order_of_asking(texts):
    asked = [(0, 3), (2, 1), (0, 3), (1, 0), (0, 0)]
    one, other = Rows(texts, ROW, seed=5), Rows(texts, ROW, seed=5)
    first = {key: one.item(*key) for key in asked}
    for key in reversed(asked):
        assert (
            torch.equal(other.item(*key)["input_ids"], first[key]["input_ids"])
            and other.item(*key)["lengths"] == first[key]["lengths"]
        )


def test_epochs_and_seeds_differ(texts):
    rows = [Rows(texts, ROW, seed=seed).item(epoch, 0)["input_ids"] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(a, b) for a, b in ((rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2])))


def test_a_row_that_is_not_there(texts):
    rows = Rows(texts, ROW)
    for index in (-1, rows.count()):
        with pytest.raises(ZambaError, match=f"row {index} of epoch 0: there are {rows.count()}"):
            rows.item(0, index)


# documents longer than a row


def long_chats(make):
    """One chat that fits into 64 tokens, one of six turns, one whose answer alone is too long, one whose question is."""
    question = {"messages": [{"role": "user", "content": text(1, 90)}, {"role": "assistant", "content": "Yes."}]}
    return make([chat(0), chat(1, 6), chat(2, 1, 90), question])


def test_a_long_chat_ends_after_the_last_turn_that_fits(make):
    shards = long_chats(make)
    rows = Rows(shards, ROW)
    found = {tuple(ids): labels for item in rows.epoch() for ids, labels in sequences(item)}
    whole = list(documents(shards))
    assert (len(found), rows.cut, rows.dropped) == (3, 2, 1) and tuple(whole[0][0]) in found
    turns = next(ids for ids in found if len(ids) < ROW and list(ids) == whole[1][0][: len(ids)])
    assert turns[-1] == 2 and found[turns][-1] == 2  # the token that ends an answer, and it is learnt
    after = whole[1][1][len(turns) :]
    assert after.index(2) + len(turns) >= ROW  # the end of the next answer would not fit
    assert any(list(ids) == whole[2][0][:ROW] for ids in found)  # no answer ends within the row: cut inside of it
    assert rows.lost == sum(len(ids) for ids, _ in whole) - sum(map(len, found))


def test_long_chats_can_be_dropped_or_split(make):
    shards = long_chats(make)
    dropped, split = Rows(shards, ROW, longer="drop"), Rows(shards, ROW, longer="split")
    assert (dropped.count(), dropped.dropped, dropped.lost) == (1, 3, int(shards.lengths[1:].sum()))
    assert (split.cut, split.lost) == (3, 0)
    assert sum(len(ids) for item in split.epoch() for ids, _ in sequences(item)) == shards.tokens


def test_nothing_left_is_an_error(make):
    with pytest.raises(ZambaError, match="no document of .* fits into a row of 16 tokens"):
        Rows(long_chats(make), 16, longer="drop")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"row": 1}, "row is 1, expected at least 2"),
        ({"pack": "hole"}, r"pack is 'hole' \(did you mean whole\?\), expected one of cut, whole"),
        ({"longer": "trun"}, r"longer is 'trun' \(did you mean turn\?\)"),
    ],
)
def test_choices_that_are_none(texts, options, told):
    with pytest.raises(ZambaError, match=told):
        Rows(texts, **options)


def test_pairs_are_no_rows(make):
    with pytest.raises(ZambaError, match="holds preference pairs, which are no rows"):
        Rows(make([pair(1)]))


@settings(max_examples=25)
@given(st.integers(2, 300), st.integers(0, 3), st.sampled_from(["cut", "whole"]))
def test_any_row_size_keeps_every_token(texts, row, seed, pack):
    rows = Rows(texts, row, seed=seed, pack=pack)
    assert sum(len(ids) for item in rows.epoch() for ids, _ in sequences(item)) == texts.tokens


def test_a_fingerprint_changes_with_anything_that_changes_a_row(texts, chats):
    others = [Rows(texts, ROW), Rows(texts, 65), Rows(texts, ROW, seed=1), Rows(texts, ROW, pack="whole"), Rows(chats, ROW)]
    prints = [rows.fingerprint for rows in others]
    assert len(set(prints)) == len(prints) and Rows(texts, ROW).fingerprint == prints[0]
