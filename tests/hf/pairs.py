"""One random model twice: transformers' class and ours, read from the same folder."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from tests.model.tiny import random_ids, random_model
from tests.parity import theirs
from tests.parity.cases import CASES, FULL, PLAIN, case_model
from zamba_lm.hf import Zamba2ForCausalLM, ZambaForCausalLM
from zamba_lm.text.tokenizer import Tokenizer

torch.set_num_threads(1)
NAMES = (PLAIN, FULL)
CLASSES = {"zamba": ZambaForCausalLM, "zamba2": Zamba2ForCausalLM}
IDS = random_ids(3, 21).clamp(min=1)


@cache
def folder(name: str, gentle: bool = False) -> Path:
    """A checkpoint of the case, kept for all tests; not to be written to. ``gentle``: no time step is below the clamp that
    transformers applies to several tokens and not to one, so that its steps agree with its passes."""
    path, model = Path(mkdtemp()) / "model", case_model(name)
    if gentle:
        for layer in model.layers:
            layer.mixer.dt_bias.clamp_(min=0.5)
    model.save(path)
    return path


def ours(name: str, gentle: bool = False, **settings):
    """Our model, without gradients."""
    return CLASSES[CASES[name].family].from_pretrained(folder(name, gentle), **settings).requires_grad_(False)


@cache
def other(name: str, gentle: bool = False):
    """transformers' model, without gradients; not to be changed."""
    return theirs.read(folder(name, gentle), CASES[name])


def mask(side: str, ids: torch.Tensor = IDS) -> torch.Tensor:
    """0, 4, 9, ... tokens of padding a row, on one side."""
    found = torch.ones_like(ids)
    for row in range(1, len(ids)):
        n = 5 * row - 1
        found[row, slice(0, n) if side == "left" else slice(-n, None)] = 0
    return found


def with_tokenizer(path: Path, *, name: str = FULL, instruct: bool = True) -> Path:
    """A checkpoint with the packaged vocabulary and its tokenizer's files, which name the class that the published ones name."""
    random_model(replace(CASES[name], vocab_size=32000, dtype="bfloat16")).to(torch.bfloat16).save(path)
    Tokenizer.mistral(instruct=instruct).save(path)
    told = json.loads((path / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(told))
    return path
