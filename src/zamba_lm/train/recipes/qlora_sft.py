"""``qlora-sft``: as ``lora-sft``, with the model below the adapters in four bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from zamba_lm.train.recipes import lora_sft, sft
from zamba_lm.train.recipes.base import need
from zamba_lm.train.tuning.lora import Lora


@dataclass(frozen=True, kw_only=True)
class Config(lora_sft.Config):
    """As ``lora-sft``; weights are NF4 with doubly quantised scales while training. OUT/model is the adapter in the full
    weights, which are read again for that."""

    name: ClassVar[str] = "qlora-sft"


PRESETS = {"zephyr": Config(), "tiny": sft.tiny(Config(lora=Lora(rank=2, alpha=4.0)))}


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model, or of the adapter where ``merge`` is off."""
    from zamba_lm.train.tuning.job import tune_chats

    need(config.start, "start", "Zyphra/Zamba2-2.7B")
    return tune_chats(config, lora=config.lora, nf4=True, resume=resume)


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.train.recipes.origin import config_of
    from zamba_lm.train.tuning.budget import Kind, told

    need(config.start, "start", "Zyphra/Zamba2-2.7B")
    kind = Kind(config.lora, nf4=True)
    return told(config, config_of(config), kind, row=config.batch.row, rows=config.batch.rows, unit="rows")
