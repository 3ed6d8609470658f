"""What records say, and what is told about those that say nothing."""

import pytest

from tests.train.data.conftest import chat, pair
from zamba_lm.errors import ZambaError
from zamba_lm.train.data import words
from zamba_lm.train.data.records import Chat, Pair, Text, held_out, read

ASKED = [{"role": "user", "content": "Why?"}]


def test_the_forms():
    assert read({"text": "Hello", "id": 3}) == Text("Hello")
    assert read({"content": "Hello", "text": 1}, text_field="content") == Text("Hello")
    assert read(chat(1)) == Chat(chat(1)["messages"])
    assert read(pair(1)).kind == "pairs"


def test_other_keys_of_a_message_are_passed_over():
    messages = [{**m, "weight": None} for m in chat(1)["messages"]]
    assert read({"messages": messages}) == Chat(chat(1)["messages"])


def test_an_instruction_is_a_chat_and_its_context_stands_below_the_question():
    said = read({"instruction": "When?", "context": "It was in May.", "response": "May."})
    assert [m["content"] for m in said.messages] == ["When?\n\nIt was in May.", "May."]
    assert read({"instruction": "When?", "input": "", "output": "May."}).messages[0]["content"] == "When?"


def test_pairs_as_texts_as_messages_and_as_whole_conversations_are_one():
    answers = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    as_texts = read({"prompt": "Why?", "chosen": "chosen", "rejected": "rejected"})
    assert as_texts == Pair(ASKED, **answers)
    assert read({"prompt": ASKED, **answers}) == as_texts
    assert read({"prompt": ASKED, **{key: ASKED + answer for key, answer in answers.items()}}) == as_texts


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"txt": "a"}, r"no 'text' \(but 'txt'\): expected {text}, {messages}"),
        ({"text": None}, "text is a NoneType, expected a string"),
        ({"text": " \n"}, "the text is empty"),
        ({"text": "a\ud800b"}, "lone surrogate"),
        ({"messages": "hi"}, "messages is a str, expected a list"),
        ({"messages": ["hi"]}, "messages is a list, expected a list of objects"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ASKED}, "no assistant turn among 1 messages"),
        ({"messages": [*ASKED, {"role": "assistant", "content": " "}]}, "the assistant says nothing"),
        ({"messages": [*ASKED, {"role": "assistant", "content": None}]}, "content is a NoneType"),
        ({"messages": [*ASKED, {"role": "assistant"}]}, "has no 'content'"),
        ({"instruction": "Why?", "context": ""}, "instruction, context and response must be strings"),
        ({"prompt": "Why?", "chosen": "a"}, "a pair without 'rejected'"),
        ({"prompt": "Why?", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": ASKED, "chosen": ASKED, "rejected": "a"}, "chosen begins with a message of the user"),
    ],
)
def test_records_that_say_nothing(record, told):
    with pytest.raises(ZambaError, match=told):
        read(record)


def test_the_held_out_share_is_a_share_and_the_same_ones_in_a_larger_share():
    small, large = ({i for i in range(4000) if held_out(f"text {i}", share)} for share in (0.05, 0.1))
    assert small < large and 120 < len(small) < 280 and 300 < len(large) < 500


def test_what_is_held_out_never_changes():
    assert [i for i in range(40) if held_out(f"text {i}", 0.1)] == [2, 3, 6, 18, 33, 38]


def test_chats_and_pairs_that_ask_the_same_are_held_out_together():
    question = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Why? "}]
    answer = [{"role": "assistant", "content": "So."}]
    assert read({"messages": question + answer}).key == read({"prompt": ASKED, "chosen": "a", "rejected": "b"}).key == "Why?"


def test_bytes_are_of_what_is_learnt():
    assert Text("naïve").n_bytes == 6
    assert read({"messages": [*ASKED, {"role": "assistant", "content": "é"}]}).n_bytes == 2


@pytest.mark.parametrize(("text", "crude"), [("Oh SHIT, no", True), ("Scunthorpe's assessment of classes", False)])
def test_crude_words_are_words(text, crude):
    assert words.crude(["fine", text]) == crude
