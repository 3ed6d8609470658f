"""Builders of what one decode step calls: projections of few rows, both mixers between their projections, paged attention."""

import torch
import torch.nn.functional as F

from zamba_lm.eval.bench import kernel_peers as peers
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.kernel_work import Draw, Work, product_flops, size_of
from zamba_lm.model.config import ZambaConfig
from zamba_lm.ops.attention import KVCache, attention
from zamba_lm.ops.linear import Normed, gated_linear, linear
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.step import NO_LIMIT, mamba1_step, mamba2_step

PAGE = 256
SCALE = 0.02


def shapes(c: ZambaConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every projection of a model, by the name of the place it stands in."""
    in_rows = c.d_inner + c.conv_dim + c.n_ssm_heads if c.family == "zamba2" else 2 * c.d_inner
    return {
        "in_proj": (in_rows, c.d_model),
        "out_proj": (c.d_model, c.d_inner),
        "qkv": (3 * c.d_attn, c.d_attn),
        "o": (c.d_model, c.d_attn),
        "gate_up": (2 * c.d_ff, c.d_model),
        "down": (c.d_model, c.d_ff),
        "link": (c.d_model, c.d_model),
        "head": (c.vocab_size, c.d_model),
    }


def projection(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int, place: str) -> Work:
    """x W^T with what stands around it there: a norm before, a residual behind."""
    (d_out, d_in), eps = shapes(c)[place], c.norm_eps
    groups = c.n_groups if place == "out_proj" else 1
    normed = place in ("in_proj", "qkv", "head") or (place == "out_proj" and c.family == "zamba2")
    wide = place == "out_proj" and c.family == "zamba2"  # the recurrence hands its output on in float32
    residual = place in ("out_proj", "link")
    sets = [
        (
            (draw.wide if wide else draw)(rows, d_in),
            draw(d_out, d_in, scale=SCALE),
            draw(d_in) if normed else None,
            draw(rows, d_out) if residual else None,
        )
        for _ in range(copies)
    ]

    def run(inputs):
        x, weight, norm, add = inputs
        return linear(x, weight, norm=None if norm is None else Normed(norm, eps, groups), residual_TO=add)

    cost = Cost(size_of(*sets[0]) + rows * d_out * draw.dtype.itemsize, product_flops(rows, sets[0][1]))
    return Work(sets, run, cost, parts=_product_only(draw))


def gated(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """Norm, gate and up projection, GELU, product."""
    sets = [(draw(rows, c.d_model), draw(2 * c.d_ff, c.d_model, scale=SCALE), draw(c.d_model)) for _ in range(copies)]
    cost = Cost(size_of(*sets[0]) + rows * c.d_ff * draw.dtype.itemsize, product_flops(rows, sets[0][1]))
    return Work(sets, lambda i: gated_linear(i[0], i[1], norm=Normed(i[2], c.norm_eps)), cost, parts=_product_only(draw))


def _product_only(draw: Draw) -> dict:
    """What torch gives the product alone to, without norm, gate and residual."""
    name = "cuBLAS, product only" if draw.device.type == "cuda" else "torch, product only"
    return {name: lambda inputs: F.linear(inputs[0].to(inputs[1].dtype), inputs[1])}


def mixer2(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """A Mamba-2 mixer between its projections."""
    H, P, N, C = c.n_ssm_heads, c.ssm_head_dim, c.d_state, c.conv_dim
    constants = (draw.wide(C, c.d_conv), draw.wide(C), draw.wide(H) - 4, draw.rates(H), draw.wide(H))
    sets = [(draw(rows, c.d_inner + C + H), draw(rows, c.d_conv - 1, C), draw.wide(rows, H, P, N)) for _ in range(copies)]
    moved = size_of(*constants, *sets[0], sets[0][1], sets[0][2]) + rows * c.d_inner * 4
    cost = Cost(moved, rows * 6 * c.d_inner * N)

    def run(inputs):
        h, window, state = inputs
        return mamba2_step(h, window, state, constants, c.n_groups, NO_LIMIT)

    return Work(sets, run, cost, peers.mixer2(c, constants))


def mixer1(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """A Mamba-1 mixer between its projections."""
    H, P, N, R = c.n_ssm_heads, c.ssm_head_dim, c.d_state, c.dt_rank
    constants = (draw.wide(c.d_inner, c.d_conv), draw.wide(c.d_inner), draw.wide(H, P) - 4, draw.rates(H, P, N), draw.wide(H, P))
    sets = [
        (
            draw(rows, 2 * c.d_inner),
            draw(rows, c.d_conv - 1, c.d_inner),
            draw.wide(rows, H, P, N),
            draw(H, R + 2 * N, P, scale=SCALE),
            draw(H, P, R, scale=SCALE),
        )
        for _ in range(copies)
    ]
    moved = size_of(*constants, *sets[0], sets[0][1], sets[0][2]) + rows * c.d_inner * draw.dtype.itemsize
    cost = Cost(moved, rows * 6 * c.d_inner * N + product_flops(rows, *sets[0][3:]))

    def run(inputs):
        h, window, state, x_proj, dt_proj = inputs
        return mamba1_step(h, window, state, constants, x_proj, dt_proj, NO_LIMIT)

    return Work(sets, run, cost, peers.mixer1(c, constants))


def paged(c: ZambaConfig, rows: int, context: int, draw: Draw, copies: int) -> Work:
    """Attention of one new token a sequence over ``context`` earlier ones, which lie in pages."""
    heads, d = c.n_heads, c.head_dim
    each = -(-(context + 1) // PAGE)
    table = torch.randperm(rows * each, generator=torch.Generator().manual_seed(1)).view(rows, each).int().to(draw.device)
    past = torch.full((rows,), context, dtype=torch.int32, device=draw.device)
    sets = [
        (*(draw(rows, heads, d) for _ in range(3)), *(draw(rows * each, heads, PAGE, d) for _ in range(2))) for _ in range(copies)
    ]
    moved = rows * heads * d * draw.dtype.itemsize * (2 * context + 4 + 2)
    cost = Cost(moved, 4 * rows * heads * d * (context + 1))
    packing = Packing((1,) * rows)

    def run(inputs):
        q, k, v, keys, values = inputs
        return attention(q, k, v, c.attn_scale, packing, KVCache(keys, values, table, past, (context,) * rows))

    return Work(sets, run, cost, peers.decode_attention(c, rows, context, table))
