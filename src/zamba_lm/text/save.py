"""Write a tokenizer's files into a model folder."""

import json
from pathlib import Path

from zamba_lm.text.definition import Definition
from zamba_lm.text.whole import replacing

OTHERS = ("chat_template.jinja", "added_tokens.json")  # a tokenizer.model is read by nobody beside a tokenizer.json


def write(parts: Definition, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json, as transformers' AutoTokenizer reads them.

    Each file is written beside its place and then moved there, so that a full disk leaves no half of one. What an earlier
    tokenizer left beside them goes: its template would hold before ours.
    """
    names = parts.names()
    template = {} if parts.chat_template is None else {"chat_template": parts.chat_template}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,  # transformers' way to say: no limit
        **names,
        **template,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "tokenizer.json", parts.source)
    _replace(folder / "special_tokens_map.json", json.dumps(names, indent=2, ensure_ascii=False) + "\n")
    _replace(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for name in OTHERS:
        (folder / name).unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")
