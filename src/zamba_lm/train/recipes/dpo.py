"""``dpo``: a model that learns which of two answers is better."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.train.recipes.base import Optim, Rate, Recipe, Run, Scale, need, said
from zamba_lm.train.recipes.sft import TINY_RUN

LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "apo_zero", "apo_down", "discopop")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Where preference pairs come from."""

    folder: str = said("", "folder that relative paths below start from; empty: the working directory")
    sources: dict[str, str] = said(
        {}, "NAME=FOLDER of token shards of kind pairs, as `zamba-lm data tokenise` makes them; all are used"
    )
    held_out: bool = said(True, "measure loss, margin and accuracy on what the shards hold out, if they hold out anything")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How much is trained on, and how much at once."""

    epochs: float = said(1.0, "passes over all pairs", least=0)
    pairs: int = said(32, "pairs of one optimizer step, of all devices together", least=1)
    micro: int = said(0, "pairs at once on one device; 0: the most that the plan says will fit", least=0)
    length: int = said(1024, "tokens of a prompt and its longer answer; pairs with more are left out", least=1)
    recompute: str = said("layers", "what is computed twice to save memory: none, mixers, blocks or layers")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The loss."""

    beta: float = said(0.01, "how closely the model is held to the reference: higher is closer")
    loss: str = said("sigmoid", f"TRL's loss_type: {', '.join(LOSSES)}; sigmoid is DPO as published")
    label_smoothing: float = said(0.0, "share of pairs taken to be the wrong way round (sigmoid, robust)")
    sft: float = said(0.0, "weight of the chosen answers' -log p (mean over tokens) beside the loss", least=0)

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ZambaError(f"dpo.loss is {self.loss!r}{nearest(self.loss, LOSSES)}, expected one of {', '.join(LOSSES)}")
        if self.beta <= 0:
            raise ZambaError(f"dpo.beta is {self.beta}, expected above 0")
        least = 1e-6 if self.loss == "exo_pair" else 0.0  # whose target distribution must not be certain
        if not least <= self.label_smoothing < 0.5:
            raise ZambaError(f"dpo.label_smoothing is {self.label_smoothing}, expected {least:g} or more and below 0.5")


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """``start`` names the model, which is also the reference: it scores all pairs once, before the first step."""

    name: ClassVar[str] = "dpo"
    start: str = said("", "the model: a run folder (its newest checkpoint), a checkpoint or a model")
    data: Pairs = field(default_factory=Pairs)
    batch: Batch = field(default_factory=Batch)
    dpo: Preference = field(default_factory=Preference)
    optim: Optim = field(default_factory=lambda: Optim(lr=5e-7, weight_decay=0.0, embedding_decay=0.0))
    rate: Rate = field(default_factory=lambda: Rate(kind="cosine", warmup=0.1, floor=0.0))
    scale: Scale = field(default_factory=Scale)
    run: Run = field(default_factory=lambda: Run(log_every=5, save_every=200))


TINY = Batch(epochs=1.0, pairs=4, micro=2, length=64, recompute="none")

# zephyr: the nearest published settings (Zamba-Zephyr: beta 0.01, 5e-7, cosine, 10 % warm-up, one epoch of 1024 tokens)
PRESETS = {
    "zephyr": Config(),
    "pebble": Config(
        batch=Batch(length=1024, pairs=64, recompute="none"),
        dpo=Preference(beta=0.1),
        optim=Optim(lr=2e-5, weight_decay=0.0, embedding_decay=0.0),
    ),
    "tiny": Config(
        batch=TINY, dpo=Preference(beta=0.5), optim=Optim(lr=3e-3, weight_decay=0.0, embedding_decay=0.0), run=TINY_RUN
    ),
}


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model."""
    from zamba_lm.train.tuning.job import tune_pairs

    need(config.start, "start", "runs/sft")
    return tune_pairs(config, resume=resume)


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.model.load import read_config
    from zamba_lm.train.recipes.budget import told
    from zamba_lm.train.recipes.origin import origin

    shape = read_config(origin(need(config.start, "start", "runs/sft")))
    return told(config, shape, row=2 * config.batch.length, rows=config.batch.pairs)
