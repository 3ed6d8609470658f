"""``zamba-lm data rejects``: pairs of a model's own answers, again and again the same, and mistakes in one line."""

import json

import pytest

SAMPLING = ("--max-tokens", "4", "--device", "cpu")


@pytest.fixture
def chats(tmp_path):
    said = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Five."}]
    records = {"messages": said}, {"prompt": "Who?", "chosen": "I."}
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "chats.jsonl"


def test_pairs_are_written_that_tokenise_reads(chats, folder, run, tmp_path):
    out = tmp_path / "on-policy.jsonl"
    command = ("data", "rejects", chats, "--model", folder, "--out", out, "--samples", "2", "--save-every", "1", *SAMPLING)
    result = run(*command)
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    assert result.code == 0 and result.out == f"{out}: {len(pairs)} pairs\n" and len(pairs) == 4
    assert [pair["chosen"] for pair in pairs] == ["Five.", "Five.", "I.", "I."] and {p["source"] for p in pairs} == {"chats"}
    assert "1 of 2 records: 2 pairs" in result.err and pairs[0]["rejected"] != pairs[1]["rejected"]
    before = out.read_bytes()
    assert run(*command).out == result.out and out.read_bytes() == before
    assert run("data", "tokenise", out, "--out", tmp_path / "set", "--processes", "1").code == 0


def test_bad_lines_are_named_or_counted(chats, folder, run, tmp_path):
    chats.write_text(chats.read_text() + "\n" + '{"prompt": "And?"}\n')
    command = ("data", "rejects", chats, "--model", folder, "--out", tmp_path / "r.jsonl", *SAMPLING)
    told = run(*command)
    assert told.code == 1 and told.err == f"error: {chats} line 3: the line is empty; --bad-lines skip passes over such lines\n"
    assert not (tmp_path / "r.jsonl").exists()
    assert run(*command, "--bad-lines", "skip").out.endswith("2 pairs, 2 lines left out\n")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--temperature", "0"), "rejects need a temperature above 0 and a seed"),
        (("--top-p", "2"), "top_p is 2.0, expected a number above 0 and at most 1"),
        (("--bad-lines", "skp"), "--bad-lines is 'skp' (did you mean skip?)"),
        (("--model", "no/such/folder"), "no/such/folder"),
    ],
)
def test_mistakes_are_one_line(chats, folder, run, tmp_path, args, told):
    result = run("data", "rejects", chats, "--model", folder, "--out", tmp_path / "r.jsonl", *args)
    assert result.code == 1 and told in result.err and len(result.err.splitlines()) == 1


def test_a_file_without_records_is_told(folder, run, tmp_path):
    (tmp_path / "none.jsonl").touch()
    result = run("data", "rejects", tmp_path / "none.jsonl", "--model", folder, "--out", tmp_path / "r.jsonl")
    assert result.code == 1 and "hold no record with an answer to set others against" in result.err
