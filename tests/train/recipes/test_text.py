"""From a recipe's ``data`` to sets: what is measured, and what is told where a set is broken."""

import json

import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import Options, tokenise
from zamba_lm.train.recipes import text
from zamba_lm.train.recipes.base import Data


@pytest.fixture
def data(tmp_path):
    """Two sets, of which one holds out the file of that name."""
    for name in ("part-0", "kept-1"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(9)))
    for name, files in {"all": ["part-0"], "some": ["part-0", "kept-1"]}.items():
        tokenise([tmp_path / f"{file}.jsonl" for file in files], tmp_path / name, options=Options(hold_out=("kept-*",)))
    return Data(folder=str(tmp_path), sources={"all": "all", "some": "some", "part": "some:part-*"})


def measured(data):
    return list(text.held_out(data, None, Tokenizer.mistral(instruct=True), 32, 0))


def test_only_sources_that_hold_out_something_are_measured(data):
    assert measured(data) == ["some"]


def test_a_held_out_set_that_is_broken_is_told(data, tmp_path):
    file = tmp_path / "some" / "kept-1.held_out.ids"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ZambaError, match=r"kept-1.held_out.ids has \d+ bytes, the manifest says"):
        measured(data)


def test_chats_longer_than_a_row_are_told(tmp_path):
    asked, said = ({"role": role, "content": "word " * 50} for role in ("user", "assistant"))
    chats = [[asked, said], [{**asked, "content": "hi"}, said], [{**asked, "content": "hi"}, {**said, "content": "ho"}]]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    tokenise([tmp_path / "chats.jsonl"], tmp_path / "set")
    with pytest.warns(UserWarning, match="of 3 documents 1 are cut to rows of 40 tokens and 1 left out, .* longest has 1.. tok"):
        text.rows(Data(sources={"a": str(tmp_path / "set")}), 40, Tokenizer.mistral(instruct=True), 32000)


def test_a_source_that_is_not_there_is_told(data):
    with pytest.raises(ZambaError, match="is no tokenised set"):
        measured(Data(sources={"gone": "gone"}))
