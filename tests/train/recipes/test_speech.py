"""The finished model is asked as its chats were written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import sets
from zamba_lm.train.recipes.origin import origin
from zamba_lm.train.recipes.pretrain import Config as Pretrain
from zamba_lm.train.recipes.sft import Config as Sft
from zamba_lm.train.recipes.shapes import SHAPES
from zamba_lm.train.recipes.speech import speaking, tokenizer_of
from zamba_lm.train.trainer.checkpoints import STATE


def a_set(folder: Path, record: dict, tokenizer: Tokenizer) -> str:
    source = folder.with_suffix(".jsonl")
    source.write_text(json.dumps(record) + "\n")
    sets.tokenise([source], folder, tokenizer=tokenizer)
    return str(folder)


TEXT = {"text": "Snow lies on the hills."}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def base(folder: Path, tokenizer: Tokenizer) -> str:
    tokenizer.save(folder)
    (folder / "config.json").write_text("{}")
    return str(folder)


def config(kind, start: str = "", **sources: str):
    return kind(out="run", start=start, data=kind.__dataclass_fields__["data"].default_factory().__class__(sources=sources))


def test_a_folder_brings_a_tokenizer_if_only_by_names(tmp_path):
    (tmp_path / "tokenizer").mkdir()  # as runs and sets have it: not their own
    assert not Tokenizer.lies_in(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert Tokenizer.lies_in(tmp_path)


def test_texts_alone_keep_the_tokenizer_that_wrote_them(tmp_path):
    texts = a_set(tmp_path / "texts", TEXT, Tokenizer.mistral())
    assert tokenizer_of(config(Pretrain, texts=texts)).chat_template is None


def test_chats_bring_their_template_to_a_base_model(tmp_path):
    texts = a_set(tmp_path / "texts", TEXT, Tokenizer.mistral())
    chats = a_set(tmp_path / "chats", CHAT, Tokenizer.mistral(instruct=True))
    start = base(tmp_path / "base", Tokenizer.mistral())
    found = tokenizer_of(config(Sft, start, texts=texts, chats=chats))
    assert found.encode_chat(CHAT["messages"]) == Tokenizer.mistral(instruct=True).encode_chat(CHAT["messages"])
    found.save(tmp_path / "model")
    assert Tokenizer.load(tmp_path / "model").encode_chat(CHAT["messages"][:1])[0] == 1  # the control token, not its letters


def test_a_model_that_chats_otherwise_is_refused(tmp_path):
    chats = a_set(tmp_path / "chats", CHAT, Tokenizer.mistral(instruct=True))
    start = base(tmp_path / "base", Tokenizer.mistral(instruct=True))
    told = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    told["chat_template"] = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(ZambaError, match=r"chats writes chats otherwise than the model's chat template does"):
        tokenizer_of(config(Sft, start, chats=chats))


def test_chats_need_a_template(tmp_path):
    with pytest.raises(ZambaError, match="a chat needs a tokenizer with a chat template"):
        a_set(tmp_path / "chats", CHAT, Tokenizer.mistral())


def test_a_new_model_stops_where_its_tokenizer_does():
    tokenizer = Tokenizer.mistral()
    assert speaking(SHAPES["tiny"], tokenizer) is SHAPES["tiny"]
    other = replace(SHAPES["tiny"], bos_id=7, eos_id=9, pad_id=31)
    found = speaking(other, tokenizer)
    assert (found.bos_id, found.eos_ids, found.pad_id) == (1, (2,), None)


def test_a_run_of_adapters_stands_for_the_model_it_was_merged_into(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / STATE).write_text("{}")
    with pytest.raises(ZambaError, match="holds adapters alone: merge them"):
        origin(str(tmp_path))
    base(tmp_path / "model", Tokenizer.mistral())
    assert origin(str(tmp_path)) == tmp_path / "model"
