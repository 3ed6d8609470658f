"""Blind pairs: the order hides the model, the key restores it."""

import json

import pytest

from zamba_lm.errors import ZambaError
from zamba_lm.eval.side_by_side import blind, main, prompts, tally

ASKED = [f"prompt {i}" for i in range(40)]


def test_the_key_says_whose_answer_is_whose():
    pairs, key = blind(ASKED, [f"one {i}" for i in range(40)], [f"two {i}" for i in range(40)], seed=3)
    for pair in pairs:
        a = "one" if key[str(pair["id"])] == "first" else "two"
        b = "two" if a == "one" else "one"
        assert (pair["A"], pair["B"]) == (f"{a} {pair['id']}", f"{b} {pair['id']}")
    assert 5 < sum(value == "first" for value in key.values()) < 35


def test_verdicts_are_counted_for_the_model_behind_the_letter():
    key = {"0": "first", "1": "second", "2": "first", "3": "first"}
    found = tally(key, [{"id": i, "better": b} for i, b in enumerate(("A", "A", "B", "tie"))])
    assert (found["first"], found["second"], found["tie"]) == (1, 2, 1)
    assert found["p"] == pytest.approx(1.0)


def test_an_uneven_split_is_unlikely_between_equals():
    key = {str(i): "first" for i in range(10)}
    assert tally(key, [{"id": i, "better": "A"} for i in range(10)])["p"] == pytest.approx(2 / 1024)


def test_a_missing_verdict_is_named():
    with pytest.raises(ZambaError, match="pair 1 has the verdict None"):
        tally({"0": "first", "1": "first"}, [{"id": 0, "better": "A"}])


def test_prompts_carry_their_context_and_are_drawn_by_seed(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"q{i}", "context": "c" * (i % 2)}) + "\n" for i in range(20)))
    found = prompts(path, 20, seed=1)
    assert sorted(found) == sorted(f"q{i}" + ("\n\nc" if i % 2 else "") for i in range(20))
    assert found == prompts(path, 20, seed=1) != prompts(path, 20, seed=2)
    with pytest.raises(ZambaError, match="20 prompts, fewer than the 21"):
        prompts(path, 21, seed=1)


def test_asking_and_counting_from_the_command_line(tmp_path, capsys):
    (tmp_path / "asked.jsonl").write_text('{"instruction": "Hello"}\n{"instruction": "Why?"}\n')
    out = tmp_path / "out"
    main(["ask", str(tmp_path / "asked.jsonl"), str(out), "zamba2-pebble", "zamba2-pebble", "--n", "2", "--max-tokens", "4"])
    pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 2 and all(pair["A"] == pair["B"] for pair in pairs)  # one model beside itself
    (out / "verdicts.jsonl").write_text("".join(json.dumps({"id": p["id"], "better": "tie"}) + "\n" for p in pairs))
    main(["count", str(out)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tie"] == 2
