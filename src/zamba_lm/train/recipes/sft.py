"""``sft``: a model taught by example chats, of which only the assistant's turns count."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from zamba_lm.train.recipes.base import Batch, Language, Optim, Rate, Run, need, said


@dataclass(frozen=True, kw_only=True)
class Config(Language):
    """``start`` names the model. data.sources are sets of chats; a text set among them is replayed as it is. Without
    data.weights every chat comes equally often."""

    name: ClassVar[str] = "sft"
    epochs: float = said(1.0, "passes over data.sources; 0: batch.tokens says how long", least=0)
    batch: Batch = field(default_factory=lambda: Batch(tokens=0, row=4096, rows=16, recompute="layers"))
    optim: Optim = field(default_factory=lambda: Optim(lr=2e-5, weight_decay=0.0, embedding_decay=0.0))
    rate: Rate = field(default_factory=lambda: Rate(kind="cosine", warmup=0.1, floor=0.0))
    run: Run = field(default_factory=lambda: Run(log_every=5, save_every=200))


TINY_RUN = Run(device="cpu", bf16=False, log_every=1, save_every=5, final_dtype="float32")

# zephyr: the nearest published settings (Zamba-Zephyr; batch size ours)
PRESETS = {
    "zephyr": Config(),
    "pebble": Config(
        epochs=2.0,
        batch=Batch(tokens=0, row=2048, rows=32),
        optim=Optim(name="muon", lr=2e-4, matrix_lr=3e-4, weight_decay=0.0, embedding_decay=0.0),
        rate=Rate(kind="linear", warmup=0.02, floor=0.0),
    ),
    "tiny": Config(
        epochs=0.0,
        batch=Batch(tokens=10 * 2 * 64, row=64, rows=2, micro=1),
        optim=Optim(lr=3e-3, weight_decay=0.0, embedding_decay=0.0),
        run=TINY_RUN,
    ),
}


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model."""
    from zamba_lm.train.tuning.job import tune_chats

    need(config.start, "start", "runs/anneal")
    return tune_chats(config, resume=resume)


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.train.recipes.budget import told
    from zamba_lm.train.recipes.origin import config_of

    need(config.start, "start", "runs/anneal")
    return told(config, config_of(config), row=config.batch.row, rows=config.batch.rows)


def tiny(config: Config) -> Config:
    """Settings of a test, for a recipe that differs in what is trained."""
    small = PRESETS["tiny"]
    return replace(config, epochs=small.epochs, batch=small.batch, optim=replace(small.optim, lr=1e-2), run=small.run)
