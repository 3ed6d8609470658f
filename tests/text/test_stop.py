"""Stop strings against a plain search in the full text, however it is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zamba_lm.errors import ZambaError
from zamba_lm.text.stop import StopStrings
from zamba_lm.text.stream import Detokenizer
from zamba_lm.text.tokenizer import Tokenizer

WORD = st.text(alphabet="ab.\n", max_size=6)


def cut(stops, parts) -> tuple[str, bool]:
    watch = StopStrings(stops)
    text = "".join(map(watch.push, parts)) + watch.flush()
    return text, watch.stopped


def expected(stops, text) -> tuple[str, bool]:
    ends = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(ends)], True) if ends else (text, False)


@settings(max_examples=600)
@given(st.lists(WORD.filter(bool), max_size=4), st.lists(WORD, max_size=12))
def test_equals_a_search_in_the_full_text(stops, parts):
    assert cut(stops, parts) == expected(stops, "".join(parts))
    assert cut(stops, "".join(parts)) == expected(stops, "".join(parts))  # letter by letter


@settings(max_examples=300)
@given(st.lists(WORD.filter(bool), min_size=1, max_size=3), st.lists(WORD, max_size=12))
def test_what_is_given_out_is_never_taken_back(stops, parts):
    """Held back is at most the longest stop string less one character, and only what begins a stop string."""
    watch, seen, given_out = StopStrings(stops), "", ""
    for part in parts:
        seen, given_out = seen + part, given_out + watch.push(part)
        assert expected(stops, seen)[0].startswith(given_out)
        if not watch.stopped:
            held = seen[len(given_out) :]
            assert len(held) < max(map(len, stops))
            assert not held or any(stop.startswith(held) for stop in stops) or any(stop in held for stop in stops)


@pytest.mark.parametrize("text", ["He said 🧯 stop\n\nUser: no", "你好，世界。再见", "a\r\n\r\nb"])
@pytest.mark.parametrize("stop", ["\n\nUser:", "🧯 s", "。", "\r\n\r", "absent"])
def test_across_the_borders_of_tokens(text, stop):
    tokenizer = Tokenizer.mistral()
    stream, watch = Detokenizer(tokenizer), StopStrings([stop])
    out = "".join(watch.push(stream.push(token_id)) for token_id in tokenizer.encode(text))
    out += watch.push(stream.flush()) + watch.flush()
    assert (out, watch.stopped) == expected([stop], text)


def test_the_stop_is_seen_at_once_where_nothing_else_can_win():
    watch = StopStrings(["ab", "abc"])
    assert (watch.push("xa"), watch.push("b"), watch.stopped) == ("x", "", True)
    assert (watch.push("more"), watch.flush()) == ("", "")


def test_an_earlier_beginning_is_waited_for():
    watch = StopStrings(["abcd", "bc"])
    assert (watch.push("xabc"), watch.stopped) == ("x", False)
    assert (watch.push("d"), watch.stopped) == ("", True)
    watch = StopStrings(["abcd", "bc"])
    assert (watch.push("xabc"), watch.push("e"), watch.stopped) == ("x", "a", True)
    watch = StopStrings(["abcd", "bc"])
    assert (watch.push("xabc"), watch.flush(), watch.stopped) == ("x", "a", True)


def test_held_back_text_is_released():
    watch = StopStrings("stop")
    assert (watch.push("I st"), watch.push("ay. s"), watch.flush(), watch.stopped) == ("I ", "stay. ", "s", False)


def test_without_stop_strings_everything_passes():
    watch = StopStrings(())
    assert (watch.push("abc"), watch.flush(), watch.stopped) == ("abc", "", False)


@pytest.mark.parametrize("bad", [[""], ["a", ""], [3], "", [None]])
def test_stop_strings_must_be_strings_of_at_least_one_character(bad):
    with pytest.raises(ZambaError, match="expected a string of at least one character"):
        StopStrings(bad)
