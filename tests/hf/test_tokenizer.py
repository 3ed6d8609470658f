"""AutoTokenizer gives the ids that the models were trained with, whatever class the files name."""

import json

import pytest
from transformers import AutoTokenizer

from zamba_lm import hf
from zamba_lm.text.tokenizer import Tokenizer

TEXTS = [
    "Hello  world",
    " leading",
    "   three spaces, then\ttab",
    "a\nb\n\n c",
    "日本 é 🎉 \u2028",
    "x <|im_start|>user\nhi<|im_end|>\n",
    "<s> a </s>",
    "",
]


def write(path, instruct: bool, class_name: str | None):
    Tokenizer.mistral(instruct=instruct).save(path)
    (path / "config.json").write_text(json.dumps({"model_type": "zamba2"}))
    file = path / "tokenizer_config.json"
    told = json.loads(file.read_text())
    told.pop("tokenizer_class")
    file.write_text(json.dumps(told if class_name is None else told | {"tokenizer_class": class_name}))
    return path


@pytest.mark.parametrize(
    "class_name", [None, "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "TokenizersBackend"]
)
@pytest.mark.parametrize("instruct", [False, True])
def test_ids_are_ours(instruct, class_name, tmp_path):
    hf.register()
    mine = Tokenizer.mistral(instruct=instruct)
    their = AutoTokenizer.from_pretrained(write(tmp_path, instruct, class_name))
    for text in TEXTS:
        assert their(text, add_special_tokens=False).input_ids == mine.encode(text, bos=False, special=True)
        ids = mine.encode(text, special=True)
        assert their(text).input_ids == ids
        assert their.decode(ids, skip_special_tokens=True) == mine.decode(ids)
    assert (their.bos_token_id, their.eos_token_id, their.pad_token_id) == (1, 2, 0)
    assert their.chat_template == mine.chat_template


def test_without_files_the_packaged_vocabulary(tmp_path):
    hf.register()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zamba", "vocab_size": 32000}))
    their = AutoTokenizer.from_pretrained(tmp_path, padding_side="left", model_max_length=77)
    assert their("Hello").input_ids == Tokenizer.mistral().encode("Hello")
    assert (their.padding_side, their.model_max_length) == ("left", 77)


def test_saved_by_transformers_and_read_by_us(tmp_path):
    hf.register()
    their = AutoTokenizer.from_pretrained(write(tmp_path / "a", True, "LlamaTokenizer"))
    their.save_pretrained(tmp_path / "b")
    mine = Tokenizer.load(tmp_path / "b")
    assert all(mine.encode(text, special=True) == their(text).input_ids for text in TEXTS)
    assert mine.chat_template == their.chat_template
