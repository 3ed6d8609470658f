"""Corpus files: what is a target, what survives a damaged archive."""

import json
import lzma

import numpy as np
import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.corpus import BOS, EOS, TARGET, encode_chat, encode_documents, encode_folder, main, read_held_out, read_jsonl

CHAT = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hi!\nHow are you?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.mistral()


def ids_and_targets(entries):
    return (entries & ~TARGET).astype(int).tolist(), (entries >= TARGET).tolist()


def test_every_token_of_a_document_but_the_first_is_a_target(tokenizer):
    (entries,) = encode_documents(tokenizer, ["The cat sat."])
    ids, targets = ids_and_targets(entries)
    assert ids == [BOS, *tokenizer.encode("The cat sat.", bos=False), EOS]
    assert targets == [False] + [True] * (len(ids) - 1)


def test_only_the_assistant_is_a_target_and_its_turn_ends(tokenizer):
    entries = encode_chat(CHAT)
    ids, targets = ids_and_targets(entries)
    assert ids == Tokenizer.mistral(instruct=True).encode_chat(CHAT, add_generation_prompt=False)
    said = [i for i, t in zip(ids, targets, strict=True) if t]
    assert said[-1] == EOS and tokenizer.decode(said[:-1]).strip() == "Hi!\nHow are you?"


def test_what_a_chat_trains_on_is_what_inference_asks_for(tokenizer):
    ids, targets = ids_and_targets(encode_chat(CHAT))
    prompt = Tokenizer.mistral(instruct=True).encode_chat(CHAT[:1])
    assert targets.index(True) == len(prompt) and ids[: len(prompt)] == prompt


def test_a_corpus_is_written_with_its_manifest(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "chat").mkdir()
    texts = ["First text.", "Zweiter Text: äöü."]
    (tmp_path / "text" / "pretrain-00.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    with lzma.open(tmp_path / "chat" / "sft.jsonl.xz", "wt") as file:
        file.write(json.dumps({"messages": CHAT}) + "\n")
    encode_folder(tmp_path, tmp_path / "out", processes=1)
    manifest = {e["file"]: e for e in json.loads((tmp_path / "out" / "manifest.json").read_text())}
    assert manifest["pretrain-00.npy"]["bytes"] == sum(len(t.encode()) for t in texts)
    entries, n_bytes = read_held_out(tmp_path / "out", "pretrain-00.npy")
    assert len(entries) == manifest["pretrain-00.npy"]["tokens"] and n_bytes == manifest["pretrain-00.npy"]["bytes"]
    assert np.array_equal(np.load(tmp_path / "out" / "sft.npy"), encode_chat(CHAT))


def test_a_truncated_archive_gives_what_it_has_and_says_so(tmp_path, capsys):
    text = "".join(json.dumps({"text": f"line {i} " + "x" * i}) + "\n" for i in range(3000))
    whole = lzma.compress(text.encode())
    (tmp_path / "cut.jsonl.xz").write_bytes(whole[: len(whole) // 2])
    lines = list(read_jsonl(tmp_path / "cut.jsonl.xz"))
    assert 0 < len(lines) < 3000 and lines[0]["text"].startswith("line 0")
    assert "cut.jsonl.xz" in capsys.readouterr().err


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(ZambaError, match="line 2"):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_an_empty_folder_is_one_clear_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), str(tmp_path / "out")])
    assert end.value.code == 2 and "error: no text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
