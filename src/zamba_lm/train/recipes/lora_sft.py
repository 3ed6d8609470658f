"""``lora-sft``: chats teach low-rank adapters; the model below them stays as it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from zamba_lm.train.recipes import sft
from zamba_lm.train.recipes.base import Optim, need, said
from zamba_lm.train.tuning.lora import Lora


@dataclass(frozen=True, kw_only=True)
class Config(sft.Config):
    """As ``sft``. OUT/adapter is the adapter as PEFT reads it, OUT/model the model with the adapter in its weights."""

    name: ClassVar[str] = "lora-sft"
    lora: Lora = field(default_factory=Lora)
    optim: Optim = field(default_factory=lambda: Optim(lr=2e-4, weight_decay=0.0, embedding_decay=0.0))
    merge: bool = said(True, "write OUT/model as well")


PRESETS = {"zephyr": Config(), "tiny": sft.tiny(Config(lora=Lora(rank=2, alpha=4.0)))}


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model, or of the adapter where ``merge`` is off."""
    from zamba_lm.train.tuning.job import tune_chats

    need(config.start, "start", "Zyphra/Zamba2-2.7B")
    return tune_chats(config, lora=config.lora, resume=resume)


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.train.recipes.origin import config_of
    from zamba_lm.train.tuning.budget import Kind, told

    need(config.start, "start", "Zyphra/Zamba2-2.7B")
    kind = Kind(config.lora, nf4=False)
    return told(config, config_of(config), kind, row=config.batch.row, rows=config.batch.rows, unit="rows")
