"""A tiny model in a folder, sets of chats and pairs, and trainers over ids of a small vocabulary."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer as Tokens
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, SFTConfig

from tests.model.tiny import CONFIGS, VOCAB, random_model
from tests.train.tuning.recipe_runs import Runner
from zamba_lm.hf import wrap
from zamba_lm.model.zamba import Zamba
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import tokenise
from zamba_lm.train.data.job import Options
from zamba_lm.train.recipes.shapes import SHAPES
from zamba_lm.train.trainer.arguments import steady_arguments


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with the tiny recipe shape and the packaged tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    Zamba(SHAPES["tiny"]).init_weights(0).save(folder)
    Tokenizer.mistral(instruct=True).save(folder)
    return folder


def chat(i):
    return {"messages": [said("user", f"say {i}"), said("assistant", f"it is {i} and {i * i} " * (1 + i % 5))]}


def said(role, content):
    return {"role": role, "content": content}


@pytest.fixture(scope="session")
def sets(tmp_path_factory, base):
    """Folders of shards: chats and pairs, a part of each held out."""
    folder = tmp_path_factory.mktemp("sets")
    pair = ({"prompt": f"say {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 4)} for i in range(40))
    found = {}
    for kind, records in (("chat", map(chat, range(60))), ("pairs", pair)):
        file, found[kind] = folder / f"{kind}.jsonl", folder / kind
        file.write_text("\n".join(map(json.dumps, records)))
        tokenise([file], found[kind], tokenizer=base, options=Options(kind=kind, share=0.15))
    return found


@pytest.fixture
def run(tmp_path, base, sets):
    return Runner(tmp_path, base, sets)


@pytest.fixture(scope="session")
def tokens():
    """A tokenizer that TRL accepts; the tests bring their own ids."""
    words = Tokens(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2", pad_token="t0")


def wrapped(name="zamba2, everything", seed=0):
    return wrap(random_model(CONFIGS[name], seed).requires_grad_(True))


def ids(n, seed):
    return torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def examples(n=12):
    """Sequences of which the second half is to be learned."""
    rows = [ids(5 + 7 * i % 26, i) for i in range(n)]
    return Dataset.from_dict({"input_ids": rows, "labels": [[-100] * (len(r) // 2) + r[len(r) // 2 :] for r in rows]})


def preferences(n=12):
    sizes = ((2 + i % 5, 3 + i % 7, 2 + i % 4) for i in range(n))
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_list([dict(zip(names, (ids(m, 10 * i + k) for k, m in enumerate(size)))) for i, size in enumerate(sizes)])


def sft_arguments(out, **given):
    return SFTConfig(**_arguments(out, {"max_length": 32, "per_device_train_batch_size": 2} | given))


def dpo_arguments(out, **given):
    more = {"max_length": 32, "precompute_ref_log_probs": True, "beta": 0.5, "per_device_train_batch_size": 4}
    return DPOConfig(**_arguments(out, more | given))


def _arguments(out, given):
    fixed = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "learning_rate": 3e-3, "save_strategy": "no"}
    return steady_arguments(output_dir=str(out), logging_steps=1, max_steps=6, seed=1) | fixed | given
