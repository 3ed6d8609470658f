"""Memory and step time of pre-training on 8 to 1024 GPUs, by arithmetic from what one and two H200s measured.

    python tools/plan_scale.py             print the tables of docs/scale.md
    python tools/plan_scale.py --write     put them into the page

Nothing here is a measurement but the numbers under "measured"; the page says how they are put together.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.presets import PRESETS
from zamba_lm.train.trainer import plan

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- tools/plan_scale.py -->\n", "<!-- end of tools/plan_scale.py -->\n"

# measured: whole steps (forward, backward, AdamW) of zamba2-2.7b on H200s, rows of 4096 tokens, no recomputation
LIKE, ROW = "zamba2-2.7b", 4096
ONE_ROW, FOUR_ROWS = 231.7e-3, 802.1e-3  # seconds of a step on one H200
TWO_FOUR_ROWS = 858.8e-3  # with 4 rows on each of two H200s, in two pieces
PRODUCTS = 0.69  # share of a row's time in matrix products and attention, which H100 and H200 do alike

# data sheets
NVLINK, INFINIBAND = 450e9, 50e9  # bytes a second of one GPU, one way: NVLink 4 in a machine of 8; 400 Gb/s between machines
GPUS = {"H100": (80e9, 3.35e12), "H200": (141e9, 4.8e12)}  # memory in bytes, its bandwidth in bytes a second
PEAK = 989e12  # dense bfloat16 operations a second of either

# assumed
OF_LINK = 0.75  # share of a link's rate that large collectives reach
MACHINE, BATCH = 8, 384  # GPUs of a machine; rows of a step, or one for each GPU where there are more
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
SHAPES = ("zamba2-1.2b", "zamba2-2.7b", "zamba2-7b", "zamba-7b-v1")

ROW_TIME = (FOUR_ROWS - ONE_ROW) / 3  # seconds of forward and backward for one more row
REST_TIME = ONE_ROW - ROW_TIME  # of the optimizer, clipping and whatever else is once a step


@dataclass(frozen=True)
class Step:
    """One way to train: seconds, and bytes on a GPU. ``micro`` rows at once, ``times`` times a step."""

    gpus: int
    pieces: int
    micro: int
    times: int
    recompute: str
    memory: int
    compute: float
    link: float
    network: float
    ends: float
    optimizer: float
    flops: int

    @property
    def copies(self) -> int:
        return self.gpus // self.pieces

    @property
    def seconds(self) -> float:
        """Exchanges run beside the computation, the longer of both counts; beside nothing: the first gather, the last sum."""
        hidden = beside(self.link + self.network)
        return max(self.compute + hidden, self.link, self.network) + self.ends + self.optimizer

    @property
    def tokens(self) -> int:
        return self.gpus * self.micro * self.times * ROW

    @property
    def mfu(self) -> float:
        return self.flops * self.gpus * self.micro * self.times / self.seconds / PEAK / self.gpus


def beside(exchange: float) -> float:
    """Seconds by which exchanging takes from the computation it runs beside, as measured on two H200s."""
    c = PRESETS[LIKE]
    alone = 4 * ROW_TIME + REST_TIME / 2
    return exchange * max(0.0, TWO_FOUR_ROWS - alone - ends(c, 2, NVLINK)) / exchange_time(c, 2, 1)[0]


# bytes


def exchange_time(c: ZambaConfig, pieces: int, times: int) -> tuple[float, int]:
    """Seconds that a GPU sends within a copy in a step, and the bytes."""
    embedding, blocks = c.vocab_size * c.d_model, c.n_blocks * c.block_params()
    layers = c.n_params() - embedding - blocks
    gathers = 4 * embedding + 2 * blocks + 2 * times * 2 * layers
    sums = times * 4 * c.n_params()
    count = (gathers + sums) * (pieces - 1) // pieces
    return count / (link(pieces) * OF_LINK), count


def link(pieces: int) -> float:
    """The slowest link that a copy's exchanges cross."""
    return NVLINK if pieces <= MACHINE else INFINIBAND


def between(c: ZambaConfig, pieces: int, copies: int, times: int) -> tuple[float, int]:
    """Seconds that a GPU sends to other copies in a step, and the bytes: the sum of gradients of its piece, there and back."""
    count = 2 * times * 4 * c.n_params() // pieces * (copies - 1) // copies
    return count / (INFINIBAND * OF_LINK), count


def ends(c: ZambaConfig, pieces: int, rate: float) -> float:
    """Seconds of the first gather and the last sum, of the embedding and a layer, beside which nothing can be computed."""
    embedding = c.vocab_size * c.d_model
    layer = (c.n_params() - embedding - c.n_blocks * c.block_params()) // c.n_layers
    return (8 * embedding + 6 * layer) * (pieces - 1) / pieces / (rate * OF_LINK)


# time


def row_time(c: ZambaConfig, gpu: str) -> float:
    """Seconds of a row forward and back: by operations; what is no product waits for the memory, which is slower in an H100."""
    slower = PRODUCTS + (1 - PRODUCTS) * GPUS["H200"][1] / GPUS[gpu][1]
    return ROW_TIME * slower * c.flops(ROW, training=True) / PRESETS[LIKE].flops(ROW, training=True)


def again(c: ZambaConfig, recompute: str) -> float:
    """Time with recomputation over time without: a forward pass, a third of it all, of the part that is computed again."""
    mixers = c.n_layers * c.mixer_params() / c.weights_read_per_token()
    return 1 + {"none": 0.0, "mixers": mixers, "layers": 1.0}[recompute] / 3


def step(c: ZambaConfig, gpu: str, gpus: int) -> Step | None:
    """The fastest step that fits; None where none does."""
    found = [one for pieces in {MACHINE, min(gpus, 64)} for one in ways(c, gpu, gpus, pieces)]
    return min(found, key=lambda one: one.seconds, default=None)


def ways(c: ZambaConfig, gpu: str, gpus: int, pieces: int):
    rows = max(1, BATCH // gpus)
    for recompute in ("none", "mixers", "layers"):
        for micro in (n for n in range(1, rows + 1) if rows % n == 0):
            memory = plan.memory(
                c, row=ROW, micro=micro, recompute=recompute, optimizer="adamw", bf16=True, pieces=pieces, keep="blocks"
            ).total
            if memory > plan.SPARE * GPUS[gpu][0]:
                continue
            times, copies = rows // micro, gpus // pieces
            yield Step(
                gpus, pieces, micro, times, recompute, memory,
                compute=rows * row_time(c, gpu) * again(c, recompute),
                link=exchange_time(c, pieces, times)[0],
                network=between(c, pieces, copies, times)[0] if copies > 1 else 0.0,
                ends=ends(c, pieces, link(pieces)),
                optimizer=REST_TIME * c.n_params() / PRESETS[LIKE].n_params() / pieces * GPUS["H200"][1] / GPUS[gpu][1],
                flops=c.flops(ROW, training=True),
            )  # fmt: skip


# the page


def table(name: str) -> str:
    c = PRESETS[name]
    lines = [
        f"**{name}**, {c.n_params() / 1e9:.2f} B parameters",
        "",
        "| GPUs | copies x pieces | rows at once x times | recompute | GiB | compute | exchange | between | step | tok/s | MFU "
        "| 1 T tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        lines += [line(gpu, count, step(c, gpu, count)) for count in COUNTS]
    return "\n".join(lines) + "\n"


def line(gpu: str, count: int, s: Step | None) -> str:
    if s is None:
        return f"| {count} {gpu} | nothing fits |" + " |" * 10
    days = 1e12 / (s.tokens / s.seconds) / 86400
    cells = [
        f"{count} {gpu}", f"{s.copies} x {s.pieces}", f"{s.micro} x {s.times}", s.recompute, f"{s.memory / 2**30:.0f}",
        *(f"{1e3 * one:.0f} ms" for one in (s.compute, s.link, s.network, s.seconds)), f"{rate(s.tokens / s.seconds)}",
        f"{100 * s.mfu:.0f} %", f"{days:.1f} days",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def rate(tokens: float) -> str:
    return f"{tokens / 1e6:.2f} M" if tokens >= 1e6 else f"{tokens / 1e3:.0f} k"


def example() -> str:
    """One line of the tables, worked out."""
    c, gpus, gpu = PRESETS[LIKE], 64, "H100"
    s = step(c, gpu, gpus)
    assert s is not None
    (inside, inside_bytes), (outside, outside_bytes) = (
        exchange_time(c, s.pieces, s.times), between(c, s.pieces, s.copies, s.times)
    )  # fmt: skip
    rows, own = s.micro * s.times, c.n_params() / s.pieces
    slower = row_time(c, gpu) / row_time(c, "H200")
    return f"""Worked out for {LIKE} on {gpus} {gpu} ({s.copies} copies of {s.pieces} pieces, {rows} rows of {ROW} tokens a GPU):

    weights, gradients, moments    (4 + 4 + 8) bytes x {c.n_params() / 1e9:.3f} B / {s.pieces} = {16 * own / 2**30:.1f} GiB
    everything, by the plan        {s.memory / 2**30:.1f} GiB with {s.micro} row(s) at once, recompute={s.recompute}
    compute     {rows} rows x {ROW_TIME * 1e3:.1f} ms x {slower:.2f} ({gpu}) x {again(c, s.recompute):.2f} (recompute) = {s.compute * 1e3:.0f} ms
    exchange    {inside_bytes / 1e9:.1f} GB over NVLink at {OF_LINK * NVLINK / 1e9:.0f} GB/s = {inside * 1e3:.0f} ms
    between     {outside_bytes / 1e9:.1f} GB over the network at {OF_LINK * INFINIBAND / 1e9:.1f} GB/s = {outside * 1e3:.0f} ms
    step        max({s.compute * 1e3:.0f} + {beside(s.link + s.network) * 1e3:.0f}, {s.link * 1e3:.0f}, {s.network * 1e3:.0f}) + {s.ends * 1e3:.0f} (ends) + {s.optimizer * 1e3:.0f} (optimizer) = {s.seconds * 1e3:.0f} ms
    tokens      {gpus} x {rows} x {ROW} / {s.seconds * 1e3:.0f} ms = {rate(s.tokens / s.seconds)} tok/s
"""  # noqa: E501


def tables() -> str:
    return "\n".join([example(), *(table(name) for name in SHAPES)])


def written(page: str) -> str:
    """The page with the tables in their place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print(tables())
