"""``long-context``: a model's context doubled every so many steps, its RoPE base raised as the authors raise it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes.base import Batch, Language, Optim, Rate, need, said
from zamba_lm.train.recipes.presets import RUNS, published


@dataclass(frozen=True, kw_only=True)
class Context:
    """How the context grows."""

    first: int = said(4096, "tokens of a row at the start", least=2)
    last: int = said(65536, "tokens of a row in the end: a power of two times the first", least=2)
    every: int = said(100, "steps at each length", least=1)

    @property
    def lengths(self) -> list[int]:
        """Every length of a row, each twice the one before."""
        found = [self.first]
        while found[-1] < self.last:
            found.append(2 * found[-1])
        if found[-1] != self.last or self.first < 1:
            raise ZambaError(f"context.last is {self.last}, expected context.first ({self.first}) doubled some times")
        return found


@dataclass(frozen=True, kw_only=True)
class Config(Language):
    """``start`` names the model. A step has batch.rows rows of the last length, and as many tokens at every other; batch.row and
    batch.tokens follow from ``context``. RoPE: theta' = theta * 8^(dim / (dim - 2)), as in Zamba2-7B-Instruct; models without
    RoPE need nothing. The learning rate is not published; the default stays low and constant after its warm-up."""

    name: ClassVar[str] = "long-context"
    context: Context = field(default_factory=Context)
    optim: Optim = field(default_factory=lambda: Optim(lr=2e-5))
    rate: Rate = field(default_factory=lambda: Rate(kind="constant", warmup=20))


def _of(name: str, config: Config) -> Config:
    """A published run's, with a tenth of its peak, rows of the last length and at least layers recomputed."""
    tiny = name in ("tiny", "pebble")
    context = Context(first=64, last=256, every=4) if name == "tiny" else Context(first=2048, last=16384) if tiny else Context()
    rows = max(1, RUNS[name].batch.rows * RUNS[name].batch.row // context.last)
    optim = replace(config.optim, lr=config.optim.lr / 10, matrix_lr=config.optim.matrix_lr / 10)
    batch = Batch(row=context.last, rows=rows, recompute="none" if tiny else "layers")
    rate = Rate(kind="constant", warmup=2 if name == "tiny" else 20)
    return replace(config, context=context, optim=optim, batch=batch, rate=rate)


PRESETS = {name: _of(name, config) for name, config in published(Config).items()}


def legs(config: Config) -> list:
    """One for each length, with the same number of tokens a step."""
    from zamba_lm.train.recipes.language import Leg

    lengths, every, rows = config.context.lengths, config.context.every, config.batch.rows
    return [Leg(length, rows * config.context.last // length, every) for length in lengths]


def stretched(config: Config) -> Config:
    """With the shape's positions and RoPE for the last length."""
    from zamba_lm.train.recipes.origin import config_of

    rope = {"long_context": True} if config_of(config).rope_theta else {}
    return replace(config, shape=config.shape | rope | {"max_positions": config.context.last})


def run(config: Config, *, resume: bool = False) -> Path:
    """Train; returns the folder of the finished model."""
    from zamba_lm.train.recipes.language import train

    need(config.start, "start", "runs/anneal")
    return train(stretched(config), legs(config), resume=resume)


def plan(config: Config) -> str:
    """The memory of the run, as text."""
    from zamba_lm.train.recipes.budget import told
    from zamba_lm.train.recipes.origin import config_of

    return told(config, config_of(stretched(config)), row=config.context.last, rows=config.batch.rows)
