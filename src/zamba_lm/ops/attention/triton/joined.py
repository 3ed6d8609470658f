"""New tokens behind a long past, by torch's own kernels: they see the past and each other in two passes, which are then joined.

Torch's kernels reach nearly twice the speed of ours, but they know no pages. So the past is laid out in one piece a head first, a
small part of the work, and each pass says by the logarithm of its sums how much its result counts.
"""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import capability, launch

FEWEST = 256  # tokens, new and past, below which two passes cost more than they save
WIDEST = 256
TOKENS, ROWS = 32, 16  # of a program


@triton.jit(do_not_specialize=["past"])
def gather_kernel(
    keys, values, pages, out, past, pool_p, pool_h, PAGE, HEADS, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr
):  # fmt: skip
    """The first ``past`` keys and values of a sequence, to out (2, HEADS, past, D). A program: BT tokens of a head."""
    head = tl.program_id(1).to(tl.int64)
    t = (tl.program_id(0) * BT + tl.arange(0, BT))[:, None]
    d = tl.arange(0, DP)[None, :]
    ok = (t < past) & (d < D)
    page = tl.load(pages + t // PAGE, mask=t < past, other=0).to(tl.int64)
    source = page * pool_p + head * pool_h + (t % PAGE) * D + d
    to = (head * past + t) * D + d
    tl.store(out + to, tl.load(keys + source, mask=ok), mask=ok)
    tl.store(out + HEADS.to(tl.int64) * past * D + to, tl.load(values + source, mask=ok), mask=ok)


@triton.jit(do_not_specialize=["T"])
def join_kernel(
    a, b, a_lse, b_lse, y, T, a_t, a_h, b_t, b_h, HEADS, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr
):  # fmt: skip
    """y (T, HEADS, D): a and b, each weighed with its share of the sum; logarithms (HEADS, T). A program: BT tokens of a head."""
    head = tl.program_id(1)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    low, high = tl.load(a_lse + head * T + t, mask=t < T, other=0.0), tl.load(b_lse + head * T + t, mask=t < T, other=0.0)
    share = (1 / (1 + tl.exp(high - low)))[:, None]
    d = tl.arange(0, DP)[None, :]
    ok = (t[:, None] < T) & (d < D)
    t = t[:, None].to(tl.int64)
    one = tl.load(a + t * a_t + head * a_h + d, mask=ok, other=0.0).to(tl.float32)
    other = tl.load(b + t * b_t + head * b_h + d, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + (t * HEADS + head) * D + d, (other + share * (one - other)).to(y.dtype.element_ty), mask=ok)


def suits_joining(q_THd, packing, past) -> bool:
    """Whether two passes beat our one: one long sequence with a long past, heads that torch's fast kernels take."""
    T, _, D = q_THd.shape
    fits = q_THd.is_cuda and q_THd.dtype != torch.float32 and D <= WIDEST and D % 8 == 0
    return fits and len(packing) == 1 and past is not None and T >= FEWEST and past[0] >= FEWEST


def joined(q_THd, k_THd, v_THd, scale, cache, past: int):
    """Attention of one sequence's new tokens (rotated already) over the ``past`` tokens in ``cache`` and over each other."""
    T, H, D = q_THd.shape
    keys_PHd, values_PHd = gathered(cache, past)
    a, a_lse = flash(q_THd, keys_PHd, values_PHd, scale, causal=False)
    b, b_lse = flash(q_THd, k_THd, v_THd, scale, causal=True)
    y = torch.empty(T, H, D, dtype=q_THd.dtype, device=q_THd.device)
    launch(
        join_kernel,
        (triton.cdiv(T, ROWS), H),
        *(a, b, a_lse, b_lse, y, T, *a.stride()[:2], *b.stride()[:2], H),
        D=D,
        DP=triton.next_power_of_2(D),
        BT=ROWS,
        num_warps=4,
        device=q_THd.device,
    )
    return y


def gathered(cache, past: int):
    """Keys and values (past, heads, head_dim) of the cache's only sequence, views of tensors where a head lies in one piece."""
    _, heads, _, D = cache.keys.shape
    out = torch.empty(2, heads, past, D, dtype=cache.keys.dtype, device=cache.keys.device)
    launch(
        gather_kernel,
        (triton.cdiv(past, TOKENS), heads),
        *(cache.keys, cache.values, cache.pages_SM, out, past, *cache.keys.stride()[:2], cache.page, heads),
        D=D,
        DP=triton.next_power_of_2(D),
        BT=TOKENS,
        num_warps=4,
        device=out.device,
    )
    return out.transpose(1, 2).unbind(0)


def flash(q_THd, k_NHd, v_NHd, scale, causal: bool):
    """(y (T, heads, head_dim), natural logarithm of each row's sum (heads, T)) by torch's fastest kernel on this GPU."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THd, k_NHd, v_NHd))
    if capability(q.device) >= (9, 0):
        y, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)
    else:
        y, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    y = y[0].transpose(0, 1)
    return (y if y.stride(-1) == 1 else y.contiguous()), lse.reshape(q.shape[1], q.shape[2])
