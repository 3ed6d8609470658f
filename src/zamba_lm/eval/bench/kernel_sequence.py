"""Builders of what a prompt or a training row calls: convolution, both scans, attention, norms, the head with its loss."""

import torch
import torch.nn.functional as F

from zamba_lm.eval.bench import kernel_peers as peers
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.kernel_decode import SCALE
from zamba_lm.eval.bench.kernel_work import Draw, Work, product_flops, size_of, with_gradients
from zamba_lm.model.config import ZambaConfig
from zamba_lm.ops.attention import attention
from zamba_lm.ops.conv import conv as conv_op
from zamba_lm.ops.norm import gated_norm, norm
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan import scan as scan_op
from zamba_lm.ops.ssd import ssd as ssd_op
from zamba_lm.ops.xent import xent


def conv(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """Causal convolution and SiLU over ``rows`` sequences; x is a slice of the projection's output, as in the model."""
    T, packing, C = rows * tokens, Packing((tokens,) * rows), c.conv_dim
    weight, bias = draw.wide(C, c.d_conv), draw.wide(C)
    wide = c.d_inner + C
    sets = [(draw(T, wide)[:, c.d_inner :],) for _ in range(copies)]
    moved = T * C * draw.dtype.itemsize
    run = either(lambda i, leaves: conv_op(*(leaves or (i[0], weight, bias)), packing), lambda i: (i[0], weight, bias), backward)
    cost = Cost(moved * (5 if backward else 2), 2 * T * C * c.d_conv * (3 if backward else 1))
    return Work(sets, run, cost, peers.conv(weight, bias, rows, backward))


def ssd(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """The chunked scan of Mamba-2."""
    T, packing = rows * tokens, Packing((tokens,) * rows)
    H, P, N, G = c.n_ssm_heads, c.ssm_head_dim, c.d_state, c.n_groups
    A, D = draw.rates(H), draw.wide(H)
    sets = []
    for _ in range(copies):
        mixed = draw(T, c.conv_dim)  # x, B and C are views of one tensor, as in the model
        x, B, C = mixed.split((c.d_inner, G * N, G * N), 1)
        sets.append((x.unflatten(1, (H, P)), draw.steps(T, H), B.unflatten(1, (G, N)), C.unflatten(1, (G, N))))

    def forward(i, leaves):
        x, dt, B, C, *rest = leaves or i
        a, d = rest or (A, D)
        return ssd_op(x, dt, a, B, C, d, packing)

    run = either(forward, lambda i: (*i, A, D), backward)
    once = size_of(*sets[0]) + T * c.d_inner * draw.dtype.itemsize + rows * H * P * N * 4
    flops = T * 6 * c.d_inner * N  # the recurrence; chunks trade some more products for speed
    return Work(sets, run, Cost(once * (3 if backward else 1), flops * (3 if backward else 1)), peers.ssd(A, D, rows, backward))


def scan(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """The selective scan of Mamba-1, from raw time steps to the gate."""
    T, packing = rows * tokens, Packing((tokens,) * rows)
    H, P, N = c.n_ssm_heads, c.ssm_head_dim, c.d_state
    A, D, bias = draw.rates(H, P, N), draw.wide(H, P), draw.wide(H, P) - 4
    sets = [(*(draw(T, H, P) for _ in range(3)), draw(T, H, N), draw(T, H, N)) for _ in range(copies)]

    def forward(i, leaves):
        x, dt, z, B, C, *rest = leaves or i
        a, d, b = rest or (A, D, bias)
        return scan_op(x, dt, a, B, C, d, packing, z_THP=z, dt_bias_HP=b)

    run = either(forward, lambda i: (*i, A, D, bias), backward)
    once = size_of(*sets[0]) + T * c.d_inner * draw.dtype.itemsize + rows * H * P * N * 4
    cost = Cost(once * (3 if backward else 1), T * 6 * c.d_inner * N * (3 if backward else 1))
    return Work(sets, run, cost, peers.scan(A, D, bias, rows, backward))


def prompt_attention(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """Causal attention inside ``rows`` sequences; q, k and v are views of one tensor, as in the model."""
    T, packing, heads, d = rows * tokens, Packing((tokens,) * rows), c.n_heads, c.head_dim
    sets = [tuple(draw(T, 3 * heads, d).split(heads, 1)) for _ in range(copies)]
    run = either(lambda i, leaves: attention(*(leaves or i), c.attn_scale, packing), lambda i: i, backward)
    pairs = rows * tokens * (tokens + 1) // 2
    moved = 4 * T * heads * d * draw.dtype.itemsize
    cost = Cost(moved * (2 if backward else 1), 4 * heads * d * pairs * (3 if backward else 1))
    return Work(sets, run, cost, peers.prompt_attention(c, rows, backward))


def plain_norm(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """RMSNorm of hidden states."""
    weight = draw(c.d_model)
    sets = [(draw(rows * tokens, c.d_model),) for _ in range(copies)]
    run = either(lambda i, leaves: norm(*(leaves or (i[0], weight)), c.norm_eps), lambda i: (i[0], weight), backward)
    moved = (5 if backward else 2) * size_of(*sets[0])

    def torchs(i, leaves):
        x, w = leaves or (i[0], weight)
        return F.rms_norm(x, w.shape, w, c.norm_eps)

    peer = {"torch": either(torchs, lambda i: (i[0], weight), backward)}
    return Work(sets, run, Cost(moved, 4 * rows * tokens * c.d_model), peer)


def mixer_norm(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """The gated grouped norm of a Mamba-2 mixer."""
    weight = draw(c.d_inner)
    sets = [(draw(rows * tokens, c.d_inner), draw(rows * tokens, c.d_inner)) for _ in range(copies)]
    run = either(
        lambda i, leaves: gated_norm(*(leaves or (*i, weight)), c.norm_eps, c.n_groups), lambda i: (*i, weight), backward
    )
    moved = size_of(*sets[0]) * 3 // 2 * (2 if backward else 1) + (size_of(sets[0][0]) if backward else 0)
    return Work(sets, run, Cost(moved, 8 * rows * tokens * c.d_inner), peers.mixer_norm(c, weight, backward))


def head_loss(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = True) -> Work:
    """Linear head and cross-entropy, forward and backward."""
    T = rows * tokens
    sets = [(draw(T, c.d_model), draw(c.vocab_size, c.d_model, scale=SCALE)) for _ in range(copies)]
    targets = torch.randint(0, c.vocab_size, (T,), generator=torch.Generator().manual_seed(3)).to(draw.device)
    run = with_gradients(lambda i, leaves: xent(*leaves, targets), lambda i: i)
    cost = Cost(2 * size_of(*sets[0]), 3 * product_flops(T, sets[0][1]))

    def whole_logits(i, leaves):
        return F.cross_entropy(F.linear(*leaves).float(), targets, reduction="sum")

    return Work(sets, run, cost, {"torch, whole logits": with_gradients(whole_logits, lambda i: i)})


def either(forward, wanted, backward: bool):
    """Forward alone, or forward and backward."""
    return with_gradients(forward, wanted) if backward else lambda i: forward(i, None)
