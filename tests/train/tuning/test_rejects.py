"""On-policy rejects: which answers become pairs, and that a run that was cut off writes the same file."""

import json
from dataclasses import dataclass, replace

import pytest

from zamba_lm.engine.request import SamplingParams
from zamba_lm.errors import ZambaError
from zamba_lm.llm import LLM
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.tuning.rejects import as_pair, write_rejects

PARAMS = SamplingParams(max_tokens=6, temperature=1.0, seed=5)


@dataclass
class Answer:
    text: str
    finish_reason: str = "stop"


class Parrot:
    """An LLM whose answer says what it was asked and with which seed; ``broken`` at its nth call."""

    folder = "parrot"
    tokenizer = Tokenizer.mistral(instruct=True)

    def __init__(self, answer="{prompt} {seed}", reason="stop", broken=None):
        self.answer, self.reason, self.broken, self.calls = answer, reason, broken, 0

    def chat(self, conversations, params):
        self.calls += 1
        if self.calls == self.broken:
            raise KeyboardInterrupt
        texts = [self.answer.format(prompt=one[-1]["content"], seed=params.seed) for one in conversations]
        return [Answer(text, self.reason) for text in texts]


def records(n=7):
    pair = {"prompt": "q0", "chosen": "yes", "rejected": "old"}
    chats = ({"source": "s", "messages": [user(f"q{i}"), {"role": "assistant", "content": "yes"}]} for i in range(1, n))
    return [pair, *chats]


def user(text):
    return {"role": "user", "content": text}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs(tmp_path):
    out = tmp_path / "deep" / "rejects.jsonl"
    counts = write_rejects(Parrot(), records(), out, PARAMS, samples=2, batch=3)
    assert counts == {"pairs": 14} and len(lines(out)) == 14
    assert lines(out)[0] == {
        "prompt": [user("q0")], "chosen": "yes", "source": None, "rejected": "q0 5", "record": 0, "cut": False
    }  # fmt: skip
    assert {(line["record"], line["rejected"]) for line in lines(out)} == {(i, f"q{i} {5 + k}") for i in range(7) for k in (0, 1)}


@pytest.mark.parametrize(("answer", "reason", "counts"), [
    ("YES. ", "stop", {"same": 7}), (" ", "stop", {"empty": 7}), ("no", "length", {"cut": 7}), ("no", "stop", {"pairs": 7})
])  # fmt: skip
def test_what_is_no_pair_is_counted(tmp_path, answer, reason, counts):
    out = tmp_path / "r.jsonl"
    assert write_rejects(Parrot(answer, reason), records(), out, PARAMS, keep_cut=False) == counts
    assert len(lines(out)) == counts.get("pairs", 0)


def test_a_judge_of_ones_own(tmp_path):
    found = write_rejects(Parrot(), records(), tmp_path / "r", PARAMS, worse=lambda pair, answer: answer.startswith("q3"))
    assert found == {"pairs": 1, "same": 6}


@pytest.mark.parametrize("at", range(1, 7))
def test_a_run_that_was_cut_off_goes_on(tmp_path, at):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = write_rejects(Parrot(), records(), whole, PARAMS, samples=2, batch=3)
    with pytest.raises(KeyboardInterrupt):
        write_rejects(Parrot(broken=at), records(), parts, PARAMS, samples=2, batch=3)
    with parts.open("a") as file:
        file.write('{"prompt": [{"ro')  # a line that did not get to its end
    rest = Parrot()
    assert write_rejects(rest, records(), parts, PARAMS, samples=2, batch=3) == expected
    assert parts.read_bytes() == whole.read_bytes() and rest.calls == 6 - 2 * ((at - 1) // 2)
    assert write_rejects(Parrot(broken=1), records(), parts, PARAMS, samples=2, batch=3) == expected  # nothing left to do


def test_somebody_elses_file_is_left_alone(tmp_path):
    (tmp_path / "r").write_text("mine")
    with pytest.raises(ZambaError, match="no r.progress says how far it got"):
        write_rejects(Parrot(), records(), tmp_path / "r", PARAMS)
    assert (tmp_path / "r").read_text() == "mine"


def test_a_file_that_lost_its_end_is_refused(tmp_path):
    out = tmp_path / "r"
    write_rejects(Parrot(), records(), out, PARAMS)
    out.write_bytes(out.read_bytes()[:-3])
    with pytest.raises(ZambaError, match="shorter than r.progress says; remove both"):
        write_rejects(Parrot(), records(), out, PARAMS)


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path):
    write_rejects(Parrot(), records(), tmp_path / "r", PARAMS)
    with pytest.raises(ZambaError, match="was begun with temperature 1.0, not 0.5; go on with that, or choose another file"):
        write_rejects(Parrot(), records(), tmp_path / "r", replace(PARAMS, temperature=0.5))
    other = Parrot()
    other.folder = "another"
    with pytest.raises(ZambaError, match="was begun with model parrot, not another"):
        write_rejects(other, records(), tmp_path / "r", PARAMS)


@pytest.mark.parametrize("others", [records()[:3], [*records()[1:], *records()[:1]]])
def test_answers_to_other_records_are_not_taken_for_these(tmp_path, others):
    write_rejects(Parrot(), records(), str(tmp_path / "r"), PARAMS)
    with pytest.raises(ZambaError, match="r holds answers to 7 records that are others or more than these"):
        write_rejects(Parrot(), others, tmp_path / "r", PARAMS)
    assert write_rejects(Parrot(), records(9), tmp_path / "r", PARAMS) == {"pairs": 9}  # more behind the same ones


def test_progress_is_told(tmp_path):
    told = []
    write_rejects(
        Parrot(), records(), tmp_path / "r", PARAMS, batch=3, on_batch=lambda done, counts: told.append((done, dict(counts)))
    )
    assert told == [(0, {}), (3, {"pairs": 3}), (6, {"pairs": 6}), (7, {"pairs": 7})]


@pytest.mark.parametrize("record", [
    {"prompt": "q", "chosen": "yes"},
    {"prompt": [user("q")], "chosen": [{"role": "assistant", "content": "yes"}]},
    {"prompt": [user("q")], "chosen": [user("q"), {"role": "assistant", "content": "yes"}], "rejected": "no"},
    {"messages": [user("q"), {"role": "assistant", "content": "yes"}]},
    {"instruction": "q", "response": "yes"},
])  # fmt: skip
def test_forms_of_records(record):
    assert as_pair(record) == {"prompt": [user("q")], "chosen": "yes", "source": None}


@pytest.mark.parametrize(("record", "said"), [
    ({"prompt": "q", "chosen": [user("x")]}, 'needs "prompt" and a "chosen" text'),
    ({"chosen": "x"}, 'needs "prompt" and a "chosen" text'),
    ({"messages": [user("q")]}, "does not end with an answer of the assistant"),
    ({"messages": []}, "messages"),
    ({"prompt": "q"}, 'needs "prompt" and a "chosen" text'),
    ({"prompt": "q", "chosen": ["x"]}, 'needs "prompt" and a "chosen" text'),
    ({"prompt": [{"role": "user"}], "chosen": "x"}, "no 'content'"),
])  # fmt: skip
def test_malformed_records(record, said):
    with pytest.raises(ZambaError, match=said):
        as_pair(record)


@pytest.mark.parametrize("params", [SamplingParams(seed=1), SamplingParams(temperature=1.0)])
def test_greedy_or_unseeded_sampling_is_refused(tmp_path, params):
    with pytest.raises(ZambaError, match="a temperature above 0 and a seed"):
        write_rejects(Parrot(), records(), tmp_path / "r", params)


def test_with_the_embedded_model(tmp_path):
    llm, out = LLM(device="cpu"), tmp_path / "r"
    counts = write_rejects(llm, records(3), out, PARAMS)
    assert counts.total() == 3 and counts["pairs"] == len(lines(out)) > 0
    again = tmp_path / "again"
    write_rejects(llm, records(3), again, PARAMS)
    assert again.read_bytes() == out.read_bytes()


def test_a_model_that_was_never_taught_to_answer_is_refused(tmp_path):
    base = Parrot()
    base.tokenizer = Tokenizer.mistral()
    with pytest.raises(ZambaError, match="parrot has no chat template, so nobody taught it to answer"):
        write_rejects(base, records(), tmp_path / "r", PARAMS)
