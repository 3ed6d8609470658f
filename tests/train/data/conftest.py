"""Small files of every form, and sets made of them."""

import json

import pytest

from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import Options, Shards, tokenise

WORDS = "the cat sat on a mat and saw how many birds were there while it rained".split()


def text(number, words=None):
    """A text of its own, the longer the higher the number."""
    return f"Text {number}: " + " ".join(WORDS[(number * 7 + i) % len(WORDS)] for i in range(words or number % 40 + 3))


def chat(number, turns=1, words=6):
    """A chat of its own; every turn is a question and an answer."""
    messages = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn} of chat {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {turn}: {text(number + turn, words)}."})
    return {"messages": messages, "source": f"topic{number % 3}"}


def pair(number):
    prompt = [{"role": "user", "content": f"Question {number}?"}]
    return {"prompt": prompt, "chosen": f"Right: {text(number)}", "rejected": f"Wrong {number}.", "source": "made"}


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.mistral(instruct=True)


@pytest.fixture
def jsonl(tmp_path):
    """Write records, or lines as they are, to a file; returns its path."""

    def write(name, records):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def make(tmp_path_factory, tokenizer):
    """A set of records: ``make(records)`` is its Shards, in a folder of its own."""

    def build(records, *, split="train", name="part", **options):
        folder = tmp_path_factory.mktemp("set")
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        tokenise([folder / f"{name}.jsonl"], folder / "set", tokenizer=tokenizer, options=Options(**options))
        return Shards.open(folder / "set", split)

    return build


@pytest.fixture(scope="session")
def texts(make):
    """400 short texts."""
    return make([{"text": text(i), "source": f"s{i % 3}"} for i in range(400)])


@pytest.fixture(scope="session")
def chats(make):
    """300 chats of one to three turns."""
    return make([chat(i, i % 3 + 1) for i in range(300)])
