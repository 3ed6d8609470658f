"""generation_config.json as SamplingParams."""

import pytest

from zamba_lm.engine.defaults import from_generation_config
from zamba_lm.engine.request import SamplingParams
from zamba_lm.errors import ZambaError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, SamplingParams()),
        ({"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}, SamplingParams()),
        ({"do_sample": False, "temperature": 0.7, "top_k": 50, "top_p": 0.9}, SamplingParams()),
        ({"temperature": 0.7}, SamplingParams()),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
            SamplingParams(temperature=0.7, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1),
        ),
        ({"do_sample": True, "temperature": None, "top_k": None}, SamplingParams(temperature=1.0)),
        (
            {"do_sample": False, "repetition_penalty": 1.2, "max_new_tokens": 17},
            SamplingParams(repetition_penalty=1.2, max_tokens=17),
        ),
    ],
    ids=str,
)
def test_what_the_file_says_is_what_is_done(content, expected):
    assert from_generation_config(content) == expected


@pytest.mark.parametrize(("content", "name"), [({"max_new_tokens": 0}, "max_tokens"), ({"do_sample": True, "top_p": 2}, "top_p")])
def test_a_bad_value_names_the_file(content, name):
    with pytest.raises(ZambaError, match=f"generation_config.json: {name} is"):
        from_generation_config(content)
