"""SamplingParams says what is wrong with a value, and in which range it may lie."""

from math import inf, nan

import pytest

from zamba_lm.engine.request import SamplingParams
from zamba_lm.errors import ZambaError

BAD = [
    ("max_tokens", 0, "at least 1"),
    ("max_tokens", -3, "at least 1"),
    ("max_tokens", 1.5, "whole number"),
    ("max_tokens", True, "whole number"),
    ("max_tokens", None, "whole number"),
    ("temperature", -0.1, "at least 0"),
    ("temperature", nan, "at least 0"),
    ("temperature", inf, "at least 0"),
    ("temperature", "warm", "number"),
    ("top_k", -1, "at least 0"),
    ("top_k", 2.0, "whole number"),
    ("top_p", 0, "above 0"),
    ("top_p", 1.01, "at most 1"),
    ("top_p", nan, "above 0"),
    ("min_p", -0.01, "from 0 to 1"),
    ("min_p", 1.5, "from 0 to 1"),
    ("repetition_penalty", 0, "above 0"),
    ("repetition_penalty", -1.0, "above 0"),
    ("repetition_penalty", inf, "above 0"),
    ("seed", -1, "from 0"),
    ("seed", 2**64, "from 0"),
    ("seed", "x", "whole number"),
    ("stop", "", "at least one character"),
    ("stop", ["a", ""], "at least one character"),
    ("stop", [1], "at least one character"),
    ("stop", 5, "at least one character"),
    ("stop", None, "at least one character"),
    ("logprobs", -1, "from 0"),
    ("logprobs", 1001, "to 1000"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD, ids=[f"{name}={value!r}" for name, value, _ in BAD])
def test_bad_value_is_one_line_naming_value_and_range(name, value, expected):
    with pytest.raises(ZambaError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is {value!r}, expected") and expected in message and "\n" not in message


def test_edges_are_allowed():
    SamplingParams(max_tokens=1, temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1, seed=0, logprobs=0)
    SamplingParams(temperature=100.0, top_k=10**9, top_p=1e-9, min_p=1, repetition_penalty=1e-3, seed=2**64 - 1, logprobs=1000)


def test_stop_is_a_tuple_whatever_was_given():
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop == SamplingParams(stop=("a", "b")).stop == ("a", "b")
    assert SamplingParams().stop == ()


def test_params_are_frozen_and_hashable():
    params = SamplingParams(stop=["x"])
    assert hash(params) == hash(SamplingParams(stop="x"))
    with pytest.raises(AttributeError):
        params.seed = 1


def test_one_argmax_answers_only_plain_greedy():
    assert SamplingParams().plain
    assert not any(
        p.plain for p in (SamplingParams(temperature=1), SamplingParams(logprobs=0), SamplingParams(repetition_penalty=1.1))
    )
