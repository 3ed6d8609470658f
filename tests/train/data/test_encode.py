"""Entries: which ids, and which of them are targets."""

import json

import numpy as np
import pytest

from tests.train.data.conftest import chat as make_chat
from tests.train.data.conftest import pair as make_pair
from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data.encode import chat, document, documents, dtype_for, mark, pair, texts
from zamba_lm.train.data.records import Text, read

SYSTEM = [{"role": "system", "content": "Be brief."}]


def ids_and_targets(entries):
    top = mark(entries.dtype)
    return (entries & (top - 1)).tolist(), (entries >= top).tolist()


def with_template(tokenizer, folder, template):
    """The same tokenizer with another chat template."""
    tokenizer.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return Tokenizer.load(folder)


def said(tokenizer, entries):
    """The stretches of targets, as text with control tokens."""
    ids, targets = ids_and_targets(entries)
    edges = np.flatnonzero(np.diff([0, *targets, 0]))
    return [tokenizer.decode(ids[a:b], skip_special=False) for a, b in zip(edges[::2], edges[1::2])]


@pytest.mark.parametrize(("size", "dtype"), [(32000, np.uint16), (32768, np.uint16), (32769, np.uint32), (128256, np.uint32)])
def test_ids_and_the_mark_fit(size, dtype):
    assert dtype_for(size) == dtype and size - 1 < mark(dtype)


def test_a_text_begins_and_ends_and_all_but_the_beginning_is_a_target(tokenizer):
    first, second = texts(tokenizer, ["The cat sat.", "Schön <|im_end|>"])
    assert ids_and_targets(first) == ([1, *tokenizer.encode("The cat sat.", bos=False), 2], [False] + [True] * (len(first) - 1))
    assert ids_and_targets(second)[0].count(2) == 1  # what a text spells is text


@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize("system", [[], SYSTEM], ids=["", "system"])
def test_targets_of_a_chat_are_the_answers_with_their_end(tokenizer, turns, system):
    messages = system + make_chat(3, turns)["messages"]
    entries = chat(tokenizer, messages)
    assert ids_and_targets(entries)[0] == tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert said(tokenizer, entries) == [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]


def test_what_is_learnt_follows_what_inference_asks(tokenizer):
    messages = make_chat(1)["messages"]
    ids, targets = ids_and_targets(chat(tokenizer, messages))
    asked = tokenizer.encode_chat(messages[:1])
    assert ids[: len(asked)] == asked and targets.index(True) == len(asked)


def test_a_control_token_in_an_answer_is_text(tokenizer):
    messages = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "It is <|im_end|>, see?"}]
    assert said(tokenizer, chat(tokenizer, messages)) == ["It is <|im_end|>, see?<|im_end|>"]


def test_a_chat_may_open_with_the_assistant(tokenizer):
    messages = [{"role": "assistant", "content": "Hello!"}, *make_chat(1)["messages"]]
    assert said(tokenizer, chat(tokenizer, messages))[0] == "Hello!<|im_end|>"


def test_an_answer_that_ends_the_chat_without_an_end_token_is_learnt_as_it_stands(tokenizer, tmp_path):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    plain = with_template(tokenizer, tmp_path, template)
    assert said(plain, chat(plain, make_chat(1)["messages"])) == [make_chat(1)["messages"][1]["content"]]


def test_a_template_that_looks_ahead_is_refused(tokenizer, tmp_path):
    looking = with_template(tokenizer, tmp_path, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ZambaError, match="renders the beginning of a chat otherwise when more follows"):
        chat(looking, make_chat(1)["messages"])


def test_a_pair_is_a_prompt_and_two_ways_on(tokenizer):
    record = read(make_pair(3))
    prompt, *answers = pair(tokenizer, record)
    assert prompt == tokenizer.encode_chat(record.prompt)
    for ids, answer in zip(answers, (record.chosen, record.rejected)):
        whole = tokenizer.encode_chat(record.prompt + answer, add_generation_prompt=False)
        assert prompt + ids == whole[: len(prompt) + len(ids)] and ids[-1] == 2 and 2 not in ids[:-1]


def test_documents_know_their_counts(tokenizer):
    (one,) = documents(tokenizer, [Text("naïve cat")])
    assert (one.targets, one.n_bytes, one.parts) == (len(one.entries) - 1, 10, ())
    two = document(tokenizer, read(make_pair(1)))
    prompt, chosen, rejected = pair(tokenizer, read(make_pair(1)))
    assert two.entries.tolist() == prompt + chosen + rejected and two.parts == (len(prompt), len(chosen))
    assert two.targets == len(chosen) + len(rejected)
