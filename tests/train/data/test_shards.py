"""Sets on disk: opened, damaged, checked, shown."""

import json
import shutil

import numpy as np
import pytest

from tests.train.data.conftest import chat, pair, text
from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import Shards, check
from zamba_lm.train.data.shards import fingerprint, read_manifest


@pytest.fixture
def copied(texts, tmp_path):
    """A set that a test may damage."""
    return shutil.copytree(texts.folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def smaller(tokenizer, tmp_path_factory):
    """The same tokenizer without its last piece."""
    folder = tmp_path_factory.mktemp("smaller")
    tokenizer.save(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    del content["model"]["vocab"][last]
    content["model"]["merges"] = [
        m for m in content["model"]["merges"] if (m if isinstance(m, str) else " ".join(m)).replace(" ", "", 1) != last
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer.load(folder)


def test_documents_are_views_of_the_file(texts):
    assert not texts.document(0).flags.writeable and texts.document(3).base is not None
    assert np.concatenate([texts.document(i) for i in range(len(texts))]).tolist() == np.concatenate(texts.arrays).tolist()


@pytest.mark.parametrize(
    ("split", "only", "told"),
    [
        ("trian", "*", r"unknown split 'trian' \(did you mean train\?\)"),
        ("held_out", "*", "has no held_out shard '\\*'; there: none"),
        ("train", "prat", r"has no train shard 'prat' \(did you mean part\?\); there: part"),
    ],
)
def test_a_choice_of_nothing(texts, split, only, told):
    with pytest.raises(ZambaError, match=told):
        Shards.open(texts.folder, split, only=only)


def test_a_folder_that_is_no_set(tmp_path):
    with pytest.raises(ZambaError, match="is no tokenised set .*zamba-lm data tokenise"):
        Shards.open(tmp_path)


def test_a_manifest_of_another_format_or_none_at_all(copied):
    (copied / "manifest.json").write_text(json.dumps(read_manifest(copied) | {"format": 99}))
    with pytest.raises(ZambaError, match="has format 99, this version reads 2"):
        Shards.open(copied)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(ZambaError, match="is not valid JSON"):
        Shards.open(copied)


def test_a_shard_that_was_cut_is_refused_at_once(copied):
    path = copied / "part.train.ids"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ZambaError, match=r"part.train.ids has \d+ bytes, the manifest says \d+"):
        Shards.open(copied)
    path.unlink()
    with pytest.raises(ZambaError, match="part.train.ids has 0 bytes"):
        Shards.open(copied)


def test_more_shards_than_files_may_be_open(copied, monkeypatch):
    def full(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("zamba_lm.train.data.shards.np.memmap", full)
    with pytest.raises(ZambaError, match="there may be no more of them: raise ulimit -n"):
        Shards.open(copied)


def test_a_table_that_does_not_fit_is_refused(copied):
    path = copied / "part.train.docs.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(ZambaError, match="docs.npy does not fit the manifest's 400 documents"):
        Shards.open(copied)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(ZambaError, match="cannot read .*docs.npy"):
        Shards.open(copied)


def test_check_reads_everything(copied):
    check.check(Shards.open(copied))
    path = copied / "part.train.ids"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ZambaError, match="part.train.ids has changed since it was written"):
        check.check(Shards.open(copied))


def test_check_sees_ids_of_no_token(copied):
    manifest = read_manifest(copied)
    manifest["tokenizer"]["vocab_size"] = 300
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ZambaError, match=r"holds id \d+, and its tokenizer has 300 tokens"):
        check.check(Shards.open(copied))


# tokenizers


def test_names_of_control_tokens_do_not_matter_but_the_vocabulary_does(tokenizer, smaller):
    assert fingerprint(tokenizer) == fingerprint(Tokenizer.mistral())
    assert fingerprint(smaller)["sha256"] != fingerprint(tokenizer)["sha256"]


def test_a_tokenizer_that_did_not_make_the_set_is_refused_with_both_named(texts, tokenizer, smaller):
    assert len(Shards.open(texts.folder, tokenizer=tokenizer)) == 400
    told = r"was made with the tokenizer given \(32000 tokens, sha256 \w{12}\), not with this one, given \(31999 tokens"
    with pytest.raises(ZambaError, match=told):
        Shards.open(texts.folder, tokenizer=smaller)


def test_a_model_without_the_ids_is_refused(texts):
    texts.refuse_model(32000)
    with pytest.raises(ZambaError, match="the model knows 31999 tokens, .* was made with given .32000 tokens"):
        texts.refuse_model(31999)


# looking


def test_a_chat_is_shown_with_what_is_learnt(make, tokenizer):
    shards = make([chat(2, 2)])
    told = check.shown(shards, tokenizer, 0)
    questions, answers = ([m["content"] for m in chat(2, 2)["messages"] if m["role"] == role] for role in ("user", "assistant"))
    assert [part.partition("»")[0] for part in told.split("«")[1:]] == [a + "<|im_end|>" for a in answers]
    assert all(question in told for question in questions)


def test_a_pair_is_shown_as_prompt_and_two_answers(make, tokenizer):
    told = check.shown(make([pair(1)]), tokenizer, 0)
    assert "Question 1?" in told and f"chosen: «Right: {text(1)}<|im_end|>»" in told and "rejected: «Wrong 1.<|im_end|>»" in told


def test_counts_by_source_add_up(texts):
    rows = check.by_source(texts)
    assert {row["source"] for row in rows} == {"s0", "s1", "s2"}
    for key in ("tokens", "targets", "bytes"):
        assert sum(row[key] for row in rows) == int(texts.table[key].sum())
    assert sum(row["documents"] for row in rows) == 400


def test_what_packing_comes_to(chats):
    told = check.packed(chats, 512)
    assert (told["pack"], told["cut"], told["dropped"]) == ("whole", 0, 0)
    assert told["waste"] == 1 - chats.tokens / (told["rows"] * 512) and 0 < told["waste"] < 0.1
