"""Chats and pairs as the tables that TRL takes."""

import datasets
import pytest

from tests.train.data.conftest import chat, pair
from zamba_lm.errors import ZambaError
from zamba_lm.train.data import Options, Shards, chats, encode, pair_messages, pairs, tokenise, write_pairs
from zamba_lm.train.data.records import read

PAIRS = [pair(i) for i in range(30)]


def test_chats_are_ids_and_labels_of_every_document(make, tokenizer):
    told = [chat(i, i % 3 + 1) for i in range(10)]
    table = chats(make(told))
    assert isinstance(table, datasets.Dataset) and table.column_names == ["input_ids", "labels"] and len(table) == 10
    for row, record in zip(table, told):
        entries = encode.chat(tokenizer, record["messages"]).astype(int)
        assert row["input_ids"] == (entries % 2**15).tolist()
        assert row["labels"] == [e % 2**15 if e >= 2**15 else -100 for e in entries.tolist()]


def test_the_first_token_is_no_label_even_where_it_is_marked(texts):
    assert {row["labels"][0] for row in chats(texts)} == {-100}


def test_pairs_are_a_prompt_and_two_answers(make, tokenizer):
    table = pairs(make(PAIRS))
    assert table.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"] and len(table) == 30
    for row, record in zip(table, PAIRS):
        assert tuple(row.values()) == encode.pair(tokenizer, read(record))


def test_what_is_too_long_is_left_out(make):
    shards, one = make(PAIRS), make([chat(i, i + 1) for i in range(6)])
    short = pairs(shards, longest=40)
    assert 0 < len(short) < 30
    assert all(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) <= 40 for r in short)
    assert 0 < len(chats(one, longest=100)) < 6 and max(len(row["input_ids"]) for row in chats(one, longest=100)) <= 100
    for table, of in ((pairs, shards), (chats, one)):
        with pytest.raises(ZambaError, match="has 3 tokens or fewer; the shortest has"):
            table(of, longest=3)


def test_the_wrong_table(make, texts):
    with pytest.raises(ZambaError, match="holds preference pairs: use pairs"):
        chats(make(PAIRS))
    with pytest.raises(ZambaError, match="holds documents of kind text, not preference pairs"):
        pairs(texts)


def test_pairs_as_messages(jsonl):
    path = jsonl("a.jsonl", [*PAIRS, {"prompt": "What?"}])
    with pytest.raises(ZambaError, match="a.jsonl line 31: no 'text'|a.jsonl line 31: a pair without"):
        pair_messages([path])
    table = pair_messages([path], options=Options(kind="pairs", bad_lines="skip"))
    assert len(table) == 30
    assert table[3] == {
        "prompt": PAIRS[3]["prompt"],
        "chosen": [{"role": "assistant", "content": PAIRS[3]["chosen"]}],
        "rejected": [{"role": "assistant", "content": PAIRS[3]["rejected"]}],
    }
    with pytest.raises(ZambaError, match="no preference pair in .*none.jsonl"):
        pair_messages([jsonl("none.jsonl", [])])


def test_pairs_that_were_written_are_read_again(tmp_path, tokenizer):
    assert write_pairs(tmp_path / "made.jsonl", iter(PAIRS)) == 30
    tokenise([tmp_path / "made.jsonl"], tmp_path / "set", tokenizer=tokenizer)
    assert len(pairs(Shards.open(tmp_path / "set"))) == 30
