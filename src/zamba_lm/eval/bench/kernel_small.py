"""Builders of the small ops: adapters, rotation, the bare recurrence, a step's beginning, choosing tokens."""

import torch

from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.kernel_decode import PAGE, SCALE
from zamba_lm.eval.bench.kernel_work import Draw, Work, product_flops, size_of
from zamba_lm.model.config import ZambaConfig
from zamba_lm.ops.adapter import adapter
from zamba_lm.ops.opening import opening
from zamba_lm.ops.rope import angles, rope
from zamba_lm.ops.sample import Settings, greedy, sample
from zamba_lm.ops.step import step

RANK = 128  # where a model has no adapters of its own
DRAWN = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02}


def correction(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """y + B A x of the MLP's projection, not merged."""
    rank = c.adapter_rank or RANK
    sets = [
        (
            draw(rows, 2 * c.d_ff),
            draw(rows, c.d_model),
            draw(rank, c.d_model, scale=SCALE),
            draw(2 * c.d_ff, rank, scale=SCALE),
        )
        for _ in range(copies)
    ]
    cost = Cost(size_of(*sets[0], sets[0][0]), product_flops(rows, *sets[0][2:]))
    return Work(sets, lambda i: adapter(*i), cost)


def rotation(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int) -> Work:
    """RoPE of queries and keys."""
    turns = angles(torch.arange(rows * tokens, device=draw.device), c.head_dim, c.rope_base or 1e4)
    sets = [(draw(rows * tokens, 2 * c.n_heads, c.head_dim),) for _ in range(copies)]
    cost = Cost(2 * size_of(*sets[0]) + size_of(*turns), 3 * sets[0][0].numel())
    return Work(sets, lambda i: rope(i[0], turns), cost)


def recurrence(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """One token of the bare recurrence."""
    H, P, N = c.n_ssm_heads, c.ssm_head_dim, c.d_state
    G, one = (c.n_groups, True) if c.family == "zamba2" else (H, False)
    A, D = (draw.rates(H, 1, 1), draw.wide(H, 1)) if one else (draw.rates(H, P, N), draw.wide(H, P))
    sets = [
        (
            draw(rows, H, P),
            draw.steps(rows, H, 1 if one else P),
            draw(rows, G, N),
            draw(rows, G, N),
            draw.wide(rows, H, P, N),
        )
        for _ in range(copies)
    ]
    cost = Cost(size_of(*sets[0], sets[0][0], sets[0][4], A), 6 * rows * c.d_inner * N)
    return Work(sets, lambda i: step(i[0], i[1], A, i[2], i[3], D, i[4]), cost)


def beginning(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """What a step of decoding begins with; no row grows, so that every run finds the same ages."""
    g, pages = torch.Generator().manual_seed(1), -(-(context + 1) // PAGE)

    def whole(most, *shape, dtype=torch.int32):
        return torch.randint(most, shape, generator=g, dtype=dtype).to(draw.device)

    sets = [
        (
            whole(c.vocab_size, rows, dtype=torch.int64),
            draw(c.vocab_size, c.d_model),
            whole(rows * pages, rows, pages),
            whole(rows, rows),
            whole(context + 1, rows),
            whole(1, rows),
        )
        for _ in range(copies)
    ]
    moved = rows * (2 * c.d_model * draw.dtype.itemsize + 8 * pages) + size_of(sets[0][0], *sets[0][3:], *sets[0][4:5])
    return Work(sets, lambda i: opening(*i)[0], Cost(moved, rows))


def likeliest(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """The most likely token of each row."""
    sets = [(draw(rows, c.vocab_size), _ids(rows, draw)) for _ in range(copies)]

    def run(inputs):
        greedy(*inputs)
        return inputs[1]

    return Work(sets, run, Cost(size_of(sets[0][0]), rows * c.vocab_size))


def drawn(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """A token drawn for each row, with temperature, top-k, top-p and min-p."""
    sets = []
    for _ in range(copies):
        settings = Settings.empty(rows, draw.device)
        settings.put_all(range(rows), [{**DRAWN, "seed": row} for row in range(rows)])
        sets.append((draw(rows, c.vocab_size, scale=3.0), settings, _ids(rows, draw)))

    def run(inputs):
        sample(*inputs)
        return inputs[2]

    return Work(sets, run, Cost(size_of(sets[0][0]), rows * c.vocab_size))


def _ids(rows: int, draw: Draw) -> torch.Tensor:
    return torch.full((rows,), -2, dtype=torch.int64, device=draw.device)
