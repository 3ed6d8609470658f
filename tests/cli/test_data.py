"""``zamba-lm data``: what is printed, what is written, what a mistake looks like."""

import json
import lzma

import pytest


@pytest.fixture
def texts(tmp_path):
    """Two files of texts, of which one is broken off."""
    lines = [json.dumps({"text": f"Text {i} of a cat on a mat.", "source": f"s{i % 2}"}) + "\n" for i in range(2000)]
    (tmp_path / "a.jsonl").write_text("".join(lines[:50]))
    packed = lzma.compress("".join(lines[50:]).encode())
    (tmp_path / "b-15.jsonl.xz").write_bytes(packed[:-100])
    return tmp_path


@pytest.fixture
def made(texts, run):
    result = run("data", "tokenise", texts, "--out", texts / "set", "--hold-out", "*-15", "--processes", "1")
    assert result.code == 0
    return texts / "set", result


def test_a_set_is_made_and_told(made):
    folder, result = made
    assert (folder / "manifest.json").exists() and (folder / "b-15.held_out.ids").exists()
    assert result.out.splitlines()[0].startswith("train: 50 documents, ")
    assert result.out.splitlines()[1].startswith("held_out: ")
    assert "a: 50 records, " in result.err
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "b-15.jsonl.xz is damaged: " in warnings[0]


def test_again_is_quick_and_the_same(made, run):
    folder, first = made
    again = run("data", "tokenise", folder.parent / "a.jsonl", "--out", folder, "--hold-out", "*-15", "--processes", "1")
    assert again.code == 0 and again.out == first.out


def test_info_by_source(made, run):
    result = run("data", "info", made[0], "--row", "64")
    assert result.code == 0 and "text, tokenizer zamba2-pebble (32,000 tokens" in result.out
    rows = [line.split()[:3] for line in result.out.splitlines() if " train " in line]
    assert sorted(rows[:2]) == [["s0", "train", "25"], ["s1", "train", "25"]]
    assert "train packs (cut) into " in result.out and "is damaged" in result.out


def test_info_as_json(made, run):
    facts = json.loads(run("data", "info", made[0], "--json").out)
    assert facts["kind"] == "text" and facts["packing"]["train"]["row"] == 2048
    assert sum(row["documents"] for row in facts["sources"] if row["split"] == "train") == 50


def test_check_and_show(made, run):
    result = run("data", "check", made[0], "--tokenizer", "zamba2-pebble", "--show", "1")
    assert result.code == 0 and result.out.startswith("train: 50 documents, ") and "all as written" in result.out
    assert "--- 0, from s0\n<|im_start|>«" in result.out and "Text 0 of a cat on a mat.<|im_end|>»" in result.out


def test_check_finds_what_changed(made, run):
    path = made[0] / "a.train.ids"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    result = run("data", "check", made[0])
    assert result.code == 1 and result.err.startswith("error: ") and "has changed since it was written" in result.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["tokenise", "{0}/c.jsonl", "--out", "{0}/x"], "no file, folder or pattern"),
        (["tokenise", "{0}/a.jsonl", "--out", "{0}/x", "--kind", "chta"], "kind is 'chta' (did you mean chat?)"),
        (["tokenise", "{0}/b-15.jsonl.xz", "--out", "{0}/x", "--damaged", "error", "--processes", "1"], "is damaged"),
        (["info", "{0}"], "is no tokenised set"),
        (["check", "{0}", "--show", "2"], "--show needs --tokenizer"),
    ],
)
def test_mistakes_are_one_line(texts, run, args, told):
    result = run("data", *(arg.format(texts) for arg in args))
    assert result.code == 1 and told in result.err and result.err.count("\n") == 1
