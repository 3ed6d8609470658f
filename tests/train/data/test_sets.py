"""Sets: what is written, what goes on after an interruption, what is refused."""

import json
import lzma

import numpy as np
import pytest

from tests.train.data.conftest import chat, pair, text
from zamba_lm.errors import ZambaError
from zamba_lm.train.data import Options, Shards, encode, job, tokenise
from zamba_lm.train.data.shards import fingerprint

TEXTS = [{"text": text(i), "source": f"s{i % 3}"} for i in range(60)]


@pytest.fixture
def run(tmp_path, tokenizer):
    """Tokenise files into one set; returns its manifest."""

    def call(*names, out="set", **options):
        return tokenise(names, tmp_path / out, tokenizer=tokenizer, options=Options(**options))

    return call


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def entry_of(manifest, name):
    return next(entry for entry in manifest["sources"] if entry["name"] == name)


def test_a_set_holds_the_documents_in_order_with_their_sources(jsonl, run, tmp_path, tokenizer):
    run(jsonl("b.jsonl", TEXTS[40:]), jsonl("a.jsonl", TEXTS[:40]))
    shards = Shards.open(tmp_path / "set")
    expected = list(encode.texts(tokenizer, [record["text"] for record in TEXTS]))
    assert len(shards) == 60 and all(np.array_equal(shards.document(i), expected[i]) for i in range(60))
    assert [shards.names[i] for i in shards.source] == [record["source"] for record in TEXTS]
    assert shards.table["bytes"].tolist() == [len(record["text"].encode()) for record in TEXTS]
    assert shards.table["targets"].tolist() == [len(e) - 1 for e in expected] and shards.tokens == sum(map(len, expected))


def test_the_manifest_tells_what_is_there(jsonl, run, tokenizer):
    manifest = run(jsonl("a.jsonl", TEXTS))
    assert (manifest["kind"], manifest["dtype"]) == ("text", "uint16")
    assert manifest["tokenizer"] == {"name": "given", **fingerprint(tokenizer)}
    (line,) = entry_of(manifest, "a")["shards"]
    assert (line["split"], line["documents"], line["sources"]) == ("train", 60, ["s0", "s1", "s2"])


def test_a_record_without_a_source_comes_from_its_file(jsonl, run, tmp_path):
    run(jsonl("stories.jsonl", [{"text": "Once upon a time."}]))
    assert Shards.open(tmp_path / "set").names == ("stories",)


@pytest.mark.parametrize(("make", "kind"), [(chat, "chat"), (pair, "pairs")])
def test_chats_and_pairs_are_sets_too(jsonl, run, tmp_path, make, kind):
    run(jsonl("a.jsonl", [make(i) for i in range(20)]))
    shards = Shards.open(tmp_path / "set")
    assert shards.kind == kind and len(shards) == 20 and 0 < shards.table["targets"].sum() < shards.tokens


def test_more_processes_make_the_same_set(jsonl, run, tmp_path, tokenizer):
    names = [jsonl(f"{i}.jsonl", TEXTS[i::3]) for i in range(3)]
    run(*names)
    told = []
    tokenise(names, tmp_path / "two", tokenizer=tokenizer, processes=2, progress=lambda *news: told.append(news))
    assert contents(tmp_path / "set") == contents(tmp_path / "two")
    assert sorted(name for name, seen, size, entry in told if entry) == ["0", "1", "2"]


def test_an_error_in_another_process_is_told_like_one_in_this(jsonl, tmp_path, tokenizer):
    names = [jsonl("good.jsonl", TEXTS), jsonl("bad.jsonl", ["no JSON"])]
    with pytest.raises(ZambaError, match="bad.jsonl line 1: not JSON"):
        tokenise(names, tmp_path / "set", tokenizer=tokenizer, processes=2)


# lines and files that are not right


def test_a_bad_line_is_named_and_fatal(jsonl, run, tmp_path):
    path = jsonl("a.jsonl", [*TEXTS[:7], '{"text": '])
    with pytest.raises(ZambaError, match="a.jsonl line 8: not JSON: .*bad_lines=skip"):
        run(path)
    assert not list((tmp_path / "set").iterdir())


def test_bad_lines_can_be_skipped_and_are_counted_and_the_first_ones_named(jsonl, run, tmp_path):
    bad = ['{"text": ', "", "[]", '{"txt": 1}', '{"text": ""}', json.dumps(chat(1))]
    entry = entry_of(run(jsonl("a.jsonl", [*TEXTS, *bad]), bad_lines="skip"), "a")
    assert entry["records"] == 66 and entry["skipped"] == {"bad lines": 6} and len(Shards.open(tmp_path / "set")) == 60
    assert len(entry["notes"]) == 3 and all(f"a.jsonl line {61 + i}: " in note for i, note in enumerate(entry["notes"]))


def test_chats_without_an_assistant_are_bad_lines(jsonl, run):
    path = jsonl("a.jsonl", [chat(1), {"messages": [{"role": "user", "content": "Anyone there?"}]}])
    with pytest.raises(ZambaError, match="a.jsonl line 2: no assistant turn among 1 messages"):
        run(path)
    assert entry_of(run(path, bad_lines="skip", out="other"), "a")["skipped"] == {"bad lines": 1}


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    packed = lzma.compress("".join(json.dumps({"text": text(i)}) + "\n" for i in range(3000)).encode())
    path.write_bytes(packed[: len(packed) // 2])
    return path


def test_of_a_truncated_archive_all_is_used_that_can_be_read_with_one_note(broken, run, tmp_path):
    entry = entry_of(run(broken), "a")
    assert 500 < entry["records"] < 3000 and len(Shards.open(tmp_path / "set")) == entry["records"]
    assert len(entry["notes"]) == 1 and f"is damaged: {entry['records']} records can be read" in entry["notes"][0]


def test_a_truncated_archive_can_be_an_error(broken, run):
    with pytest.raises(ZambaError, match="a.jsonl.xz is damaged: .*fetch it again"):
        run(broken, damaged="error")


def test_an_empty_file_among_others_adds_nothing(jsonl, run, tmp_path):
    manifest = run(jsonl("a.jsonl", TEXTS), jsonl("none.jsonl", []))
    assert entry_of(manifest, "none")["shards"] == [] and len(Shards.open(tmp_path / "set")) == 60


def test_nothing_but_empty_files_is_an_error(jsonl, run):
    with pytest.raises(ZambaError, match="none of 1 sources holds a record that can be used"):
        run(jsonl("none.jsonl", []))


def test_where_nothing_came_of_it_other_options_may_be_tried(jsonl, run):
    path = jsonl("a.jsonl", [{"content": "Words."}])
    with pytest.raises(ZambaError, match="none of 1 sources"):
        run(path, bad_lines="skip")
    assert entry_of(run(path, text_field="content"), "a")["records"] == 1


def test_only_options_that_differ_are_told(jsonl, run):
    run(jsonl("a.jsonl", TEXTS))
    with pytest.raises(ZambaError, match="was made with options share=0.0, not share=0.5: choose another folder"):
        run(jsonl("b.jsonl", TEXTS), share=0.5)


def test_one_set_is_of_one_kind(jsonl, run):
    with pytest.raises(ZambaError, match="line 2: a record of kind chat in a set of kind text"):
        run(jsonl("mixed.jsonl", [TEXTS[0], chat(1)]))
    with pytest.raises(ZambaError, match="sources of several kinds .*text=a.jsonl.*make a set of each"):
        run(jsonl("a.jsonl", TEXTS), jsonl("b.jsonl", [chat(1)]), out="two")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "chats"}, r"kind is 'chats' \(did you mean chat\?\), expected one of auto, text, chat, pairs"),
        ({"bad_lines": "ignore"}, "bad_lines is 'ignore', expected one of error, skip"),
        ({"damaged": "kep"}, "did you mean keep"),
        ({"share": 1.0}, "share is 1.0, expected"),
    ],
)
def test_options_that_make_no_sense(options, told):
    with pytest.raises(ZambaError, match=told):
        Options(**options)


# held out, left out


def test_files_are_held_out_by_name_and_documents_by_share(jsonl, run, tmp_path):
    run(jsonl("a.jsonl", TEXTS), jsonl("b-15.jsonl", TEXTS[:5]), hold_out=("*-15",), share=0.2)
    train, held_out = (Shards.open(tmp_path / "set", split) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 65 and 5 < len(held_out) < 35
    assert [line["name"] for line in held_out.lines] == ["a", "b-15"] and [line["name"] for line in train.lines] == ["a"]


def test_what_is_held_out_does_not_depend_on_the_file_it_stands_in(jsonl, run, tmp_path):
    run(jsonl("a.jsonl", TEXTS), share=0.2)
    run(jsonl("b.jsonl", TEXTS[::-1]), share=0.2, out="other")
    one, other = (Shards.open(tmp_path / name, "held_out") for name in ("set", "other"))
    assert sorted(one.document(i).tobytes() for i in range(len(one))) == sorted(
        other.document(i).tobytes() for i in range(len(other))
    )


def test_crude_words_are_left_out_where_asked_but_not_of_what_is_held_out_by_name(jsonl, run):
    crude = [{"text": "Well, shit happens.", "source": source} for source in ("talk", "news")]
    manifest = run(jsonl("a.jsonl", crude), jsonl("out.jsonl", crude), clean=("talk",), hold_out=("out",))
    assert entry_of(manifest, "a")["skipped"] == {"crude words": 1} and entry_of(manifest, "out")["skipped"] == {}


# interrupted and again


def test_what_is_finished_stays_finished(jsonl, run, tmp_path, monkeypatch):
    first, second = jsonl("a.jsonl", TEXTS[:30]), jsonl("b.jsonl", TEXTS[30:])
    whole = run(first, second, out="whole")
    real = job.encode.documents

    def fail_at_b(tokenizer, batch):
        if batch and batch[0].text == TEXTS[30]["text"]:
            raise KeyboardInterrupt
        return real(tokenizer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(job.encode, "documents", fail_at_b)
        with pytest.raises(KeyboardInterrupt):
            run(first, second)
    assert sorted(contents(tmp_path / "set")) == ["a.json", "a.train.docs.npy", "a.train.ids"]
    before = (tmp_path / "set" / "a.train.ids").stat().st_mtime_ns
    assert run(first, second) == whole and contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert (tmp_path / "set" / "a.train.ids").stat().st_mtime_ns == before


def test_half_written_shards_of_a_killed_run_are_written_again(jsonl, run, tmp_path):
    path = jsonl("a.jsonl", TEXTS)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.train.ids.part").write_bytes(b"half")
    run(path)
    run(path, out="whole")
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_files_can_be_added_to_a_set(jsonl, run, tmp_path):
    first, second = jsonl("a.jsonl", TEXTS[:30]), jsonl("b.jsonl", TEXTS[30:])
    run(first)
    assert run(second) == run(first, second, out="whole")


def test_a_full_disk_is_told_and_leaves_no_half_of_a_shard(jsonl, run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zamba_lm.text.whole.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(jsonl("a.jsonl", TEXTS))
    assert not contents(tmp_path / "set")


def test_a_set_of_other_options_or_of_a_file_that_changed_is_not_added_to(jsonl, run):
    path = jsonl("a.jsonl", TEXTS)
    run(path)
    with pytest.raises(ZambaError, match="was made with options .*share=0.0.*, not .*share=0.5.*: choose another folder"):
        run(path, share=0.5)
    jsonl("a.jsonl", TEXTS[:-1])
    with pytest.raises(ZambaError, match="a.jsonl has .* bytes now and had"):
        run(path)


def test_a_set_of_another_tokenizer_is_not_added_to(jsonl, run, tmp_path, monkeypatch):
    path = jsonl("a.jsonl", TEXTS)
    run(path)
    monkeypatch.setattr("zamba_lm.train.data.sets.fingerprint", lambda _: {"sha256": "f" * 64, "vocab_size": 99})
    with pytest.raises(ZambaError, match="was made with tokenizer name=given, sha256=.*, not name=given, sha256=ffff"):
        run(path)
