"""Builders of what a training pass calls as one op: a Mamba-2 mixer, attention of one tensor, the bare gate, token scores."""

import torch
import torch.nn.functional as F

from zamba_lm.eval.bench import kernel_peers as peers
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.kernel_decode import SCALE
from zamba_lm.eval.bench.kernel_sequence import either
from zamba_lm.eval.bench.kernel_work import Draw, Work, product_flops, size_of
from zamba_lm.model.config import ZambaConfig
from zamba_lm.ops.attention import self_attention
from zamba_lm.ops.linear import Normed, gate
from zamba_lm.ops.mamba2 import mamba2, mamba2_mixer
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.xent import token_scores


def inside(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """A Mamba-2 mixer between its projections, each sequence afresh."""
    T, packing, E = rows * tokens, Packing((tokens,) * rows), c.d_inner + c.conv_dim + c.n_ssm_heads
    parameters, how = _parameters(c, draw), {"groups": c.n_groups, "eps": c.norm_eps}
    sets = [(draw(T, E, scale=0.5),) for _ in range(copies)]

    def forward(i, leaves):
        return mamba2(*(leaves or (*i, *parameters)), packing, **how)

    run = either(forward, lambda i: (*i, *parameters), backward)
    moved = (size_of(*sets[0]) + T * c.d_inner * draw.dtype.itemsize) * (2 if backward else 1)
    cost = Cost(moved, T * 6 * c.d_inner * c.d_state * (3 if backward else 1))
    return Work(sets, run, cost, peers.mamba2(c, parameters, rows, backward))


def mixer(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """The same with its norm, projections and residual."""
    T, packing, E = rows * tokens, Packing((tokens,) * rows), c.d_inner + c.conv_dim + c.n_ssm_heads
    parameters, how = _parameters(c, draw), {"groups": c.n_groups, "eps": c.norm_eps}
    weights = draw(c.d_model), draw(E, c.d_model, scale=SCALE), draw(c.d_model, c.d_inner, scale=SCALE)
    sets = [(draw(T, c.d_model),) for _ in range(copies)]

    def forward(i, leaves):
        x, norm, into, out, *rest = leaves or (*i, *weights, *parameters)
        return mamba2_mixer(x, Normed(norm, c.norm_eps), into, out, x, *rest, packing, **how)

    run = either(forward, lambda i: (*i, *weights, *parameters), backward)
    flops = product_flops(T, *weights[1:]) + T * 6 * c.d_inner * c.d_state
    return Work(sets, run, Cost(size_of(*sets[0], *weights) * (2 if backward else 1), flops * (3 if backward else 1)))


def _parameters(c: ZambaConfig, draw: Draw) -> tuple[torch.Tensor, ...]:
    """conv weight and bias, dt bias, A_log, D and norm weight in the model's dtype."""
    H, C = c.n_ssm_heads, c.conv_dim
    A_log = draw.rates(H).neg().log().to(draw.narrow).to(draw.dtype)
    return draw(C, c.d_conv, scale=0.5), draw(C), draw(H) - 4, A_log, draw(H), draw(c.d_inner)


def joined_attention(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """Causal attention where queries, keys and values lie in one tensor, and so does their gradient."""
    T, packing, heads, d = rows * tokens, Packing((tokens,) * rows), c.n_heads, c.head_dim
    sets = [(draw(T, 3, heads, d),) for _ in range(copies)]
    run = either(lambda i, leaves: self_attention(*(leaves or i), c.attn_scale, packing), lambda i: i, backward)
    pairs = rows * tokens * (tokens + 1) // 2
    cost = Cost(4 * T * heads * d * draw.dtype.itemsize * (2 if backward else 1), 4 * heads * d * pairs * (3 if backward else 1))
    return Work(sets, run, cost, peers.prompt_attention(c, rows, backward, joined=True))


def gating(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = False) -> Work:
    """gelu(gate) * up of a product that was made before."""
    sets = [(draw(rows * tokens, 2 * c.d_ff),) for _ in range(copies)]
    run = either(lambda i, leaves: gate(*(leaves or i)), lambda i: i, backward)

    def torchs(i, leaves):
        left, right = (leaves or i)[0].chunk(2, -1)
        return F.gelu(left) * right

    cost = Cost(size_of(*sets[0]) * (4 if backward else 3) // 2, 10 * sets[0][0].numel())
    return Work(sets, run, cost, {"torch": either(torchs, lambda i: i, backward)})


def scores(c: ZambaConfig, rows: int, tokens: int, draw: Draw, copies: int, backward: bool = True) -> Work:
    """Log-probability of every target and what is logged beside it; the gradient is that of the log-probabilities."""
    T = rows * tokens
    sets = [(draw(T, c.d_model), draw(c.vocab_size, c.d_model, scale=SCALE)) for _ in range(copies)]
    targets = torch.randint(0, c.vocab_size, (T,), generator=torch.Generator().manual_seed(3)).to(draw.device)
    run = either(lambda i, leaves: token_scores(*leaves, targets), lambda i: i, True)
    return Work(sets, run, Cost(2 * size_of(*sets[0]), 3 * product_flops(T, sets[0][1])))
