"""The incremental detokeniser: joined, its pieces are the decoded text; apart, each is whole characters."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zamba_lm.errors import ZambaError
from zamba_lm.text.stream import Detokenizer
from zamba_lm.text.tokenizer import Tokenizer

BASE, INSTRUCT = Tokenizer.mistral(), Tokenizer.mistral(instruct=True)
BYTES = st.integers(3, 258)
TOKENS = st.one_of(BYTES, BYTES, st.integers(0, 31999), st.sampled_from([0, 1, 2, 28705, 259, 13]))


def pieces(tokenizer, ids, prompt=(), **options) -> list[str]:
    stream = Detokenizer(tokenizer, prompt, **options)
    return [*map(stream.push, ids), stream.flush()]


@settings(max_examples=400)
@given(st.lists(TOKENS, max_size=30), st.lists(TOKENS, max_size=12), st.booleans())
def test_pieces_joined_are_the_decoded_text(ids, prompt, skip):
    joined = "".join(pieces(INSTRUCT, ids, prompt, skip_special=skip))
    assert joined == INSTRUCT.decode(ids, prompt_ids=prompt, skip_special=skip)


@settings(max_examples=300)
@given(st.text(max_size=30), st.text(max_size=30))
def test_prompt_and_answer_make_up_the_whole(prompt, answer):
    ids = BASE.encode(prompt + answer, bos=False)
    cut = len(ids) // 2
    before = Detokenizer(BASE)
    start = "".join(map(before.push, ids[:cut]))  # not flushed: the cut may go through a character
    assert start + "".join(pieces(BASE, ids[cut:], ids[:cut])) == BASE.decode(ids)


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_valid_text_never_shows_half_a_character(text):
    text = text.replace("\ufffd", "?").replace("\u2581", "_")
    parts = pieces(BASE, BASE.encode(text))
    assert "".join(parts) == text and parts[-1] == ""
    assert not any("\ufffd" in part for part in parts)


def test_a_character_of_four_bytes_comes_with_its_last():
    assert pieces(BASE, BASE.encode("a🧯b", bos=False)) == ["a", "", "", "", "🧯", "b", ""]
    assert pieces(BASE, BASE.encode("a🧯", bos=False)[:-1]) == ["a", "", "", "", "\ufffd"]


def test_spaces():
    hello = BASE.encode("Hello there", bos=False)
    assert pieces(BASE, hello) == ["Hello", " there", ""]
    assert pieces(BASE, hello, [1]) == ["Hello", " there", ""]
    assert pieces(BASE, hello, BASE.encode("Well,")) == [" Hello", " there", ""]
    assert pieces(BASE, BASE.encode("  x", bos=False)) == [" ", " x", ""]
    assert pieces(BASE, [28705, 28705, 28708]) == ["", " ", "a", ""]


def test_control_tokens():
    ids = [28708, 2, 28705, 1]
    assert pieces(INSTRUCT, ids, [1, 13]) == ["a", "", " ", "", ""]
    assert pieces(INSTRUCT, ids, [1, 13], skip_special=False) == ["a", "<|im_end|>", " ", "<|im_start|>", ""]


def test_the_time_a_token_takes_does_not_grow():
    """A decoder that starts over at every token would be thousands of times slower here; ten leaves room for a busy machine."""
    ids = [3 + 0x80] * 200_000

    def seconds(stream, count):
        start = time.perf_counter()
        for token_id in ids[:count]:
            stream.push(token_id)
        return time.perf_counter() - start

    stream = Detokenizer(BASE)
    early = min(seconds(stream, 2000) for _ in range(5))
    seconds(stream, len(ids))
    assert min(seconds(stream, 2000) for _ in range(5)) < 10 * early


def test_ids_outside_the_vocabulary_are_named():
    with pytest.raises(ZambaError, match="token id 32000 is outside the vocabulary of 32000 tokens"):
        Detokenizer(BASE).push(32000)
    with pytest.raises(ZambaError, match="token id -3"):
        Detokenizer(BASE, [-3])
