"""The packaged tokenizer against the package it was derived from: equal ids for every text."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from zamba_lm.text.definition import PACKAGED
from zamba_lm.text.tokenizer import Tokenizer

OURS = Tokenizer.mistral()
THEIRS = MistralTokenizer.v1().instruct_tokenizer.tokenizer
PIECES = [THEIRS.id_to_piece(i).replace("\u2581", " ") for i in range(259, 32000)]

PROSE = """It was the best of times, it was the worst of times; “well”, she said — 'tis 3.14 o'clock, isn't it? §12, №7.

    Éric naïvely paid 1,234.50 € for Dvořák's œuvre (½ off!) … Ünïcödé, ﬁnally."""
CODE = """def f(x: int, *, y=None) -> "list[int]":
\tif x <= 0x1F and y != '\\n':\r
        return [i**2 for i in range(x)]  # TODO


"""
TEXTS = {
    "prose": PROSE,
    "code": CODE,
    "c": '#include <stdio.h>\nint main(void){for(;;){printf("%08.3f\\t%s\\n",x->y[3],&z);}}/* <s> */',
    "json": '{"a":[1,2.5e-10,null,true],"b":{"c":"\\u00e9\\\\"}}',
    "chinese": "你好，世界。今天天气很好！繁體中文",
    "japanese": "こんにちは世界。ｶﾀｶﾅ カタカナ 々〆",
    "korean": "안녕하세요 세계 각 힣",
    "right to left": "مرحبا بالعالم ١٢٣ שָׁלוֹם עוֹלָם \u200fabc\u200e",
    "indic": "नमस्ते दुनिया தமிழ் ভাষা",
    "thai": "สวัสดีชาวโลก",
    "emoji": "😀😃🎉🏳️‍🌈👍🏽🇫🇷🇯🇵1️⃣",
    "joined": "👨‍👩‍👧‍👦 👩🏽‍🚀 क्‍ष a\u200db \u200c \u200d",
    "combining": "e\u0301 Z\u0351\u036b\u0343a\u0328\u0301l\u0321go \u0344",
    "normal forms": "ﬀ ① Å Å Å ſ ǆ ㍿",
    "beyond the plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎 \U0010ffff \U000e0041",
    "noncharacters": "\ufdd0 \uffff \ufffe \ufffd \ue000 \ufeff",
    "controls": "a\0b\x01\x07\x1b[31m\x7f\x80\x9f",
    "empty": "",
    "one space": " ",
    "spaces": "  leading,   inner    and trailing     ",
    "tabs": "\tone\t\ttwo \t three\t",
    "newlines": "\n\none\n\n\ntwo\r\nthree\r\r\n \n \n",
    "other whitespace": "\u00a0a\u00a0\u00a0b\u2002c\u2003\u2009d\u200ae\u202ff\u205fg\u3000h\u1680i\u2028j\u2029k\u0085l\vm\fn",
    "the space sign": "\u2581 a\u2581b \u2581\u2581",
    "control tokens": "<s> </s> <unk> <s></s>a<s> [INST] <|im_start|>",
    "byte pieces": "<0x0A> <0xFF><0x00>",
    "long word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 20,
    "one letter": "a" * 3000,
    "digits": "31415926535897932384626433832795028841971693993751" * 10,
    "rulers": "-" * 100 + "=" * 99 + "_" * 65 + "*" * 33 + "." * 17 + "/" * 80,
}


def equal(text: str) -> bool:
    return OURS.encode(text, bos=False) == THEIRS.encode(text, bos=False, eos=False)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_ids_equal_the_original(text):
    assert OURS.encode(text) == THEIRS.encode(text, bos=True, eos=False)
    assert OURS.encode(text, bos=False) == THEIRS.encode(text, bos=False, eos=False)


def test_runs_of_one_letter_equal_the_original():
    """Runs are where equal scores decide: the original joins the leftmost pair of equals."""
    letters = sorted({letter for piece in PIECES for letter in piece if piece == 2 * letter} | {" ", "\n", "\t"})
    runs = [letter * n for letter in letters for n in range(1, 70)]
    assert len(letters) > 30 and [run for run in runs if not (equal(run) and equal(f"x{run}y"))] == []


@settings(max_examples=600)
@given(st.text(max_size=60))
def test_any_text_equals_the_original(text):
    assert OURS.encode(text, bos=False) == THEIRS.encode(text, bos=False, eos=False)


@settings(max_examples=600)
@given(st.text(alphabet=" \n\t\u2581ae.-=<s>/0xA", max_size=80))
def test_any_text_of_few_letters_equals_the_original(text):
    assert OURS.encode(text, bos=False) == THEIRS.encode(text, bos=False, eos=False)


def test_joined_pieces_equal_the_original():
    """Words of the vocabulary put together at random reach merges that ordinary text seldom does."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 10))) for _ in range(5000)]
    assert [text for text in texts if not equal(text)] == []


def test_every_piece_has_its_id_and_its_text():
    assert OURS.vocab_size == THEIRS.n_words == 32000
    assert (OURS.bos_id, OURS.eos_ids, OURS.special) == (1, (2,), {"<unk>": 0, "<s>": 1, "</s>": 2})
    for index in range(259, 32000):
        assert OURS.token_bytes(index).decode() == PIECES[index - 259]
    assert [OURS.token_bytes(index) for index in range(3, 259)] == [bytes([byte]) for byte in range(256)]


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_texts_come_back_from_their_ids(text):
    text = text.replace("\u2581", "")  # the sign for a space reads back as one
    assert OURS.decode(OURS.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_decoding_equals_the_original(text):
    ids = OURS.encode(text, bos=False)
    assert OURS.decode(ids) == THEIRS.decode(ids)


def test_the_packaged_file_is_what_the_tool_writes(tmp_path):
    tool = Path(__file__).parents[2] / "tools" / "make_tokenizer.py"
    subprocess.run([sys.executable, tool, tmp_path / "tokenizer.json"], check=True)
    assert (tmp_path / "tokenizer.json").read_bytes() == PACKAGED.read_bytes()
