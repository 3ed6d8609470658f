"""A small tokenised set, and what a run has logged."""

import json
import random
from pathlib import Path

from zamba_lm.train.data.job import Options
from zamba_lm.train.data.sets import tokenise
from zamba_lm.train.trainer.journal import read

WORDS = "the a cat dog sat on mat ran fast slow and then it was very good bad big small house tree".split()
DOCUMENTS = 120


def corpus(folder: Path, *, share: float = 0.02) -> Path:
    """A tokenised set of short documents in ``folder``/shards, a part of it held out."""
    chance, texts = random.Random(0), folder / "text"
    texts.mkdir(parents=True, exist_ok=True)
    for name in ("old-00", "new-00"):
        lines = [json.dumps({"text": " ".join(chance.choices(WORDS, k=chance.randint(5, 120)))}) for _ in range(DOCUMENTS)]
        (texts / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    tokenise([texts], folder / "shards", options=Options(share=share))
    return folder / "shards"


def log(run: Path) -> list[dict]:
    """Entries of a run's log that training wrote, without what differs from machine to machine."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "tokens")
    return [{key: entry[key] for key in keys} for entry in read(run / "log.jsonl") if "loss" in entry]


def recipe(name: str = "pretrain"):
    from zamba_lm.train import recipes

    return recipes.recipe(name)
