"""Outputs: one program walks through a segment of one head chunk by chunk, the state in registers.

Numbers in comments are those of reference.py. Scores C . B are made anew for every head: a product of 64 x 64 x 64 costs less
than reading it.
"""

import triton
import triton.language as tl

from zamba_lm.ops.ssd.triton.steps import LEFT, arrivals, since_start, tile


@triton.jit(do_not_specialize=["n_chunks"])
def scan_kernel(
    x_THP,
    B_TGN,
    C_TGN,
    D_H,
    planes,
    segments,
    kept_S,
    slots,
    carried_KHPN,  # the state before each segment, or the first states (S, H, P, N)
    y_THP,
    after_SHPN,
    states_LHPN,
    H,
    P,
    N,
    per_group,
    n_chunks,
    plane,
    stride_xt,
    stride_xh,
    stride_bt,
    stride_bg,
    stride_ct,
    stride_cg,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    START: tl.constexpr,  # as in carry_kernel
    SLOTS: tl.constexpr,  # sequence s has entry slots[s] of the first states and of those after
    KEEP: tl.constexpr,  # chunks between states kept on the way, or 0; -1: the state before every chunk, for a gradient
    WHOLE_P: tl.constexpr,  # BP divides P
    WHOLE_N: tl.constexpr,  # BN is N
    EXACT: tl.constexpr,
    PDL: tl.constexpr,
    STAGES: tl.constexpr,
):
    blocks = tl.cdiv(P, BP)
    h = tl.program_id(0) // blocks
    p = (tl.program_id(0) % blocks) * BP + tl.arange(0, BP)
    segment = tl.program_id(1)
    start = tl.load(segments + 6 * segment)
    end = tl.load(segments + 6 * segment + 1)
    first = tl.load(segments + 6 * segment + 2)
    sequence = tl.load(segments + 6 * segment + 3)
    last = tl.load(segments + 6 * segment + 4) >= 2
    if KEEP > 0:
        passed = tl.load(segments + 6 * segment + 5)
        keep = tl.load(kept_S + sequence)
    n = tl.arange(0, BN)
    q = tl.arange(0, Q)
    square = p[:, None] * N + n[None, :]
    in_square = (p < P)[:, None] & (n < N)[None, :]
    count = tl.cdiv(end - start, Q)
    entry = sequence
    if SLOTS:
        entry = tl.load(slots + sequence)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if START == 0:
        state = tl.zeros((BP, BN), tl.float32)
    else:
        row = segment if START == 1 else entry
        state = tl.load(carried_KHPN + (row * H + h).to(tl.int64) * P * N + square, in_square & (count > 0), other=0.0)
        state = state.to(tl.float32)
    D = tl.load(D_H + h)
    x_base = x_THP + h * stride_xh
    y_base = y_THP + h * P
    B_base = B_TGN + (h // per_group) * stride_bg
    C_base = C_TGN + (h // per_group) * stride_cg
    for c in tl.range(0, count, num_stages=STAGES):
        at = planes + (h.to(tl.int64) * n_chunks + first + c) * Q
        total = tl.load(at + Q - 1)
        left = tl.load(at + LEFT * plane + q)
        t = start + c * Q
        rows = tl.minimum(q, end - 1 - t)  # padding repeats the last row; it adds nothing, as its dt is zero
        t = t.to(tl.int64)
        if KEEP == -1:
            before = states_LHPN + ((first + c).to(tl.int64) * H + h) * P * N + square
            tl.store(before, state.to(states_LHPN.dtype.element_ty), in_square)
        x = tile(x_base + t * stride_xt, rows, p, stride_xt, P, WHOLE_P)
        B = tile(B_base + t * stride_bt, rows, n, stride_bt, N, WHOLE_N)
        C = tile(C_base + t * stride_ct, rows, n, stride_ct, N, WHOLE_N)
        weights = tl.dot(C, tl.trans(B), input_precision="ieee") * arrivals(at, plane, Q, EXACT)
        y = tl.dot(C, tl.trans(state.to(C.dtype)), input_precision="ieee")  # (4)
        y = y * since_start(at, plane, Q, EXACT)[:, None] + D * x.to(tl.float32)
        y = tl.dot(weights.to(x.dtype), x, y, input_precision="ieee")  # (1)
        y_at = y_base + t * (H * P) + q[:, None] * (H * P) + p[None, :]
        tl.store(y_at, y.to(y_THP.dtype.element_ty), (q < end - t)[:, None] & (p < P)[None, :])
        weighted = (B.to(tl.float32) * left[:, None]).to(B.dtype)
        state = tl.dot(tl.trans(x), weighted, state * tl.exp2(total), input_precision="ieee")  # (2) and (3)
        if KEEP > 0:
            ends = ((passed + c + 1) % KEEP == 0) | (last & (c == count - 1))
            kept_row = (keep + (passed + c) // KEEP).to(tl.int64) * H + h
            tl.store(states_LHPN + kept_row * P * N + square, state, in_square & ends)
    to = after_SHPN + (entry * H + h).to(tl.int64) * P * N + square
    tl.store(to, state.to(after_SHPN.dtype.element_ty), in_square & last)
