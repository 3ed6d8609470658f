"""``anneal``: a pre-trained model on better data, the learning rate re-warmed and then falling fast, old data replayed."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes.base import Data, Language, Rate, need, said
from zamba_lm.train.recipes.origin import origin
from zamba_lm.train.recipes.presets import RUNS, annealed, published
from zamba_lm.train.trainer.checkpoints import STATE


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How much of what the model was pre-trained on comes again."""

    share: float = said(0.6, "of the rows, from the old mixture")
    weights: dict[str, float] = said({}, "the old mixture: shares of data.sources that pretraining used")
    go_on: bool = said(True, "sources go on where the run that start names left them, with rows that were not seen yet")


@dataclass(frozen=True, kw_only=True)
class Config(Language):
    """``start`` names the pre-trained run. data.weights is the new mixture, replay.weights the old one. The learning rate rises
    from 0 to optim.lr (75 % of pretraining's peak), then eta(t) = a exp(-t / (gamma T)) + b."""

    name: ClassVar[str] = "anneal"
    replay: Replay = field(default_factory=Replay)
    rate: Rate = field(default_factory=lambda: Rate(kind="exponential", floor=1e-3, gamma=0.25))


PRESETS = {name: annealed(config, RUNS[name]) for name, config in published(Config).items()}
PRESETS["pebble"] = replace(
    PRESETS["pebble"],
    data=replace(PRESETS["pebble"].data, weights={"anneal": 1.0}),
    replay=Replay(weights={"pretrain": 0.76, "anneal": 0.24}),
)


def mixture(config: Config) -> Data:
    """New and old weights as one."""
    from zamba_lm.train.recipes.text import weights

    new, old = weights(config.data), weights(replace(config.data, weights=config.replay.weights))
    share = config.replay.share
    if not 0 <= share <= 1:
        raise ZambaError(f"replay.share is {share}, expected a share between 0 and 1")
    both = {name: (1 - share) * new.get(name, 0.0) + share * old.get(name, 0.0) for name in config.data.sources}
    return replace(config.data, weights={name: weight for name, weight in both.items() if weight})


def legs(config: Config) -> list:
    """One: all rows have the same length."""
    from zamba_lm.train.recipes.language import Leg

    return [Leg(config.batch.row, config.batch.rows, config.batch.steps)]


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model."""
    from zamba_lm.train.recipes.language import train

    need(config.start, "start", "runs/pretrain")
    place = place_of(config.start) if config.replay.go_on else None

    def go_on(mixture) -> None:
        if place:
            mixture.continue_from(place)

    return train(replace(config, data=mixture(config)), legs(config), resume=resume, go_on=go_on)


def place_of(start: str) -> dict | None:
    """Where an earlier run was in its data; None where ``start`` is no checkpoint of one."""
    path = origin(start) / STATE
    if not path.is_file():
        return None
    return json.loads(path.read_text())["extra"].get("feed", {}).get("stream")


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.train.recipes.budget import told
    from zamba_lm.train.recipes.origin import config_of

    return told(config, config_of(config), row=config.batch.row, rows=config.batch.rows)
