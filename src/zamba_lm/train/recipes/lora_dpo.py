"""``lora-dpo``: preference pairs teach low-rank adapters; without them the model is its own reference."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from zamba_lm.train.recipes import dpo
from zamba_lm.train.recipes.base import Optim, need, said
from zamba_lm.train.tuning.lora import Lora


@dataclass(frozen=True, kw_only=True)
class Config(dpo.Config):
    """As ``dpo``. OUT/adapter is the adapter as PEFT reads it, OUT/model the model with the adapter in its weights."""

    name: ClassVar[str] = "lora-dpo"
    lora: Lora = field(default_factory=Lora)
    optim: Optim = field(default_factory=lambda: Optim(lr=5e-6, weight_decay=0.0, embedding_decay=0.0))
    nf4: bool = said(False, "the model below the adapters in four bits while training, as in qlora-sft")
    merge: bool = said(True, "write OUT/model as well")


_TINY = dpo.PRESETS["tiny"]
PRESETS = {
    "zephyr": Config(),
    "tiny": replace(
        Config(lora=Lora(rank=2, alpha=4.0)),
        batch=_TINY.batch, dpo=_TINY.dpo, optim=replace(_TINY.optim, lr=1e-2), run=_TINY.run,
    ),
}  # fmt: skip


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model, or of the adapter where ``merge`` is off."""
    from zamba_lm.train.tuning.job import tune_pairs

    need(config.start, "start", "runs/sft")
    return tune_pairs(config, lora=config.lora, nf4=config.nf4, resume=resume)


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.model.load import read_config
    from zamba_lm.train.recipes.origin import origin
    from zamba_lm.train.tuning.budget import Kind, told

    shape = read_config(origin(need(config.start, "start", "runs/sft")))
    kind = Kind(config.lora, config.nf4)
    return told(config, shape, kind, row=2 * config.batch.length, rows=config.batch.pairs, unit="pairs")
