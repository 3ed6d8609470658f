"""Named settings as data: the published runs (numbers as their papers and cards give them), the embedded model's, a tiny one.

Where a paper is silent the nearest published number stands, and a comment says so.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from zamba_lm.train.recipes.base import Batch, Data, Language, Optim, Rate, Run

Config = TypeVar("Config", bound=Language)

ZYDA2 = {"dclm": 4.0, "fineweb-edu": 4.0, "zyda": 0.16, "dolma-cc": 0.24}  # by documents' tokens


@dataclass(frozen=True)
class Published:
    """One pre-training run and the annealing after it."""

    batch: Batch
    optim: Optim
    rate: Rate
    data: Data = Data()
    run: Run = Run()
    anneal_tokens: int = 0
    anneal_peak: float = 0.75  # share of the peak learning rate
    anneal_end: float = 1e-7  # learning rate


def _zyda2() -> Data:
    return Data(sources={name: name for name in ZYDA2}, weights=dict(ZYDA2))


def _zamba2(lr: float = 2e-4) -> Published:
    """Zamba2-2.7B's: 1.7 M steps of 384 rows, 2e-4 to 5e-5, 5000 steps of warm-up. The sizes beside it state no others."""
    return Published(
        batch=Batch(tokens=1_700_000 * 384 * 4096, row=4096, rows=384),
        optim=Optim(lr=lr),
        rate=Rate(kind="cosine", warmup=5000, floor=0.25),
        data=_zyda2(),
        run=Run(save_every=1000, log_every=10, eval_every=1000),
        anneal_tokens=100_000_000_000,
    )


RUNS: dict[str, Published] = {
    "zamba-7b-v1": Published(
        batch=Batch(tokens=950_000_000_000, row=4096, rows=512),  # about 2 M tokens a step
        optim=Optim(lr=1.5e-4),  # betas and decay as Zamba2's
        rate=Rate(kind="cosine", warmup=5000, floor=0.5),  # 1.5e-4 to 7.5e-5; warm-up as Zamba2's
        data=Data(sources={"zyda": "zyda"}, weights={"zyda": 1.0}),
        run=Run(save_every=1000, log_every=10, eval_every=1000),
        anneal_tokens=50_000_000_000,
        anneal_peak=1.1e-4 / 1.5e-4,
    ),
    "zamba2-1.2b": _zamba2(),
    "zamba2-2.7b": _zamba2(),
    "zamba2-7b": _zamba2(),
    "pebble": Published(
        batch=Batch(tokens=700_000_000, row=2048, rows=64),
        optim=Optim(name="muon", lr=3e-3, matrix_lr=4e-3, embedding_decay=0.01),
        rate=Rate(kind="linear", warmup=0.01, decay_from=0.4, floor=0.0),
        data=Data(sources={"pretrain": "pretrain", "anneal": "anneal"}, weights={"pretrain": 0.76, "anneal": 0.24}),
        anneal_tokens=300_000_000,
        anneal_end=3e-6,
    ),
    "tiny": Published(
        batch=Batch(tokens=20 * 4 * 64, row=64, rows=4, micro=2),
        optim=Optim(lr=3e-3),
        rate=Rate(kind="cosine", warmup=2, floor=0.1),
        run=Run(device="cpu", bf16=False, log_every=1, save_every=5, final_dtype="float32"),
        anneal_tokens=10 * 4 * 64,
        anneal_end=3e-6,
    ),
}


def published(kind: type[Config], **extra: Any) -> dict[str, Config]:
    """The pre-training runs as configs of ``kind``."""
    return {
        name: kind(model=name, data=run.data, batch=run.batch, optim=run.optim, rate=run.rate, run=run.run, **extra)
        for name, run in RUNS.items()
    }


def annealed(config: Config, run: Published) -> Config:
    """Settings of the annealing after a pre-training run: fewer tokens, a lower peak, exponential decay."""
    peak = run.anneal_peak
    optim = replace(run.optim, lr=run.optim.lr * peak, matrix_lr=run.optim.matrix_lr * peak)
    rate = Rate(kind="exponential", warmup=0.01, floor=run.anneal_end / optim.lr, gamma=0.25)
    return replace(config, batch=replace(run.batch, tokens=run.anneal_tokens), optim=optim, rate=rate)
