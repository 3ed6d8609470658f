"""``pretrain``: a model from random weights on a weighted mixture of text."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from zamba_lm.train.recipes.base import Language
from zamba_lm.train.recipes.presets import published


@dataclass(frozen=True, kw_only=True)
class Config(Language):
    """Learning rates warm up and fall along ``rate.kind``; documents are packed into rows and do not see each other."""

    name: ClassVar[str] = "pretrain"


PRESETS = published(Config)


def legs(config: Config) -> list:
    """One: all rows have the same length."""
    from zamba_lm.train.recipes.language import Leg

    return [Leg(config.batch.row, config.batch.rows, config.batch.steps)]


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model."""
    from zamba_lm.train.recipes.language import train

    return train(config, legs(config), resume=resume)


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.train.recipes.budget import told
    from zamba_lm.train.recipes.origin import config_of

    return told(config, config_of(config), row=config.batch.row, rows=config.batch.rows)
