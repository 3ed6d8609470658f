"""Gradients inside chunks, from the state before each chunk (h) and the gradient of the state behind it (g).

For one head and chunk, with L_ij the decay from j to i and since_i, left_j those from the chunk's start and to its end:

    dx_j  = dt_j u_j + D dy_j       u_j = sum_i L_ij (C_i . B_j) dy_i + left_j g B_j                         inputs_kernel
    dC_i  = sum_j Z_ij B_j + since_i h^T dy_i               Z_ij = L_ij dt_j x_j . dy_i                      maps_kernel
    dB_j  = sum_i Z_ij C_i + dt_j left_j g^T x_j                                                             "
    d log decay_t = sum over j < t <= i of E_ij + what crosses t from h to outputs, from inputs to g, and from h to g
    ddt_j = x_j . u_j + A d log decay_j                     E_ij = Z_ij C_i . B_j                            finish_kernel

dB and dC are sums over the heads of a group. A program takes a chunk and some heads one after another: Z is summed before it is
multiplied, and the programs' parts are added in a fixed order by ``add_up_kernel``, so results repeat bit for bit.

Rows that pad a chunk repeat the last one, except dy, which is zero there.
"""

import triton
import triton.language as tl

from zamba_lm.ops.ssd.triton.steps import DTS, LEFT, departures, since_start, tile

ROW = tl.constexpr(0)  # sum over j of E_ij, j = i among them
COLUMN = tl.constexpr(1)  # sum over i of E_ij / dt_j
INTO = tl.constexpr(2)  # x_j . g B_j
OUT = tl.constexpr(3)  # dy_i . h C_i
PASSED = tl.constexpr(4)  # x_j . dy_j
SHARES = 5  # planes of (H, chunks, Q)


@triton.jit
def inputs_kernel(
    x_THP,
    dy_THP,
    B_TGN,
    C_TGN,
    D_H,
    planes,
    chunks,
    g_ZHPN,
    dx_THP,
    shares,
    H,
    P,
    N,
    per_group,
    n_chunks,
    plane,
    stride_xt,
    stride_xh,
    stride_yt,
    stride_yh,
    stride_bt,
    stride_bg,
    stride_ct,
    stride_cg,
    stride_dt,  # of dx, tokens
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    WHOLE_P: tl.constexpr,
    WHOLE_N: tl.constexpr,
    EXACT: tl.constexpr,
    PDL: tl.constexpr,
    STAGES: tl.constexpr,
):
    h = tl.program_id(0)
    chunk = tl.program_id(1)
    start = tl.load(chunks + 2 * chunk)
    count = tl.load(chunks + 2 * chunk + 1) - start
    q = tl.arange(0, Q)
    p = tl.arange(0, BP)
    n = tl.arange(0, BN)
    rows = tl.minimum(q, count - 1)
    t = start.to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = h.to(tl.int64) * n_chunks + chunk
    at = planes + row * Q
    x = tile(x_THP + t * stride_xt + h * stride_xh, rows, p, stride_xt, P, WHOLE_P)
    real = (q < count)[:, None] & (p < P)[None, :]
    dy = tl.load(dy_THP + t * stride_yt + h * stride_yh + q[:, None] * stride_yt + p[None, :], real, other=0.0)
    B = tile(B_TGN + t * stride_bt + (h // per_group) * stride_bg, rows, n, stride_bt, N, WHOLE_N)
    C = tile(C_TGN + t * stride_ct + (h // per_group) * stride_cg, rows, n, stride_ct, N, WHOLE_N)
    behind = tile(g_ZHPN + (chunk.to(tl.int64) * H + h) * P * N, tl.minimum(p, P - 1), n, N, N, WHOLE_N)
    dt = tl.load(at + DTS * plane + q)

    u = tl.dot(B, tl.trans(behind).to(B.dtype), input_precision="ieee")
    to = shares + row * Q + q
    tl.store(to + INTO * plane, tl.sum(u * x.to(tl.float32), 1))
    dx = u * tl.load(at + LEFT * plane + q)[:, None] + tl.load(D_H + h) * dy.to(tl.float32)

    weights = tl.dot(B, tl.trans(C), input_precision="ieee") * departures(at, plane, Q, EXACT)  # j, i
    both = tl.dot(x, tl.trans(dy), input_precision="ieee")  # j, i
    tl.store(to + PASSED * plane, tl.sum(tl.where(q[:, None] == q[None, :], both, 0.0), 1))
    both *= weights
    tl.store(to + COLUMN * plane, tl.sum(both, 1))
    tl.store(to + ROW * plane, tl.sum(both * dt[:, None], 0))
    dx = tl.dot((weights * dt[:, None]).to(dy.dtype), dy, dx, input_precision="ieee")
    dx_at = dx_THP + t * stride_dt + h * P + q[:, None] * stride_dt + p[None, :]
    tl.store(dx_at, dx.to(dx_THP.dtype.element_ty), real)


@triton.jit
def maps_kernel(
    x_THP,
    dy_THP,
    B_TGN,
    C_TGN,
    planes,
    chunks,
    h_ZHPN,
    g_ZHPN,
    shares,
    across_HZ,  # h . g
    parts_K2TGN,
    T,
    H,
    P,
    N,
    per_group,
    n_chunks,
    plane,
    stride_xt,
    stride_xh,
    stride_yt,
    stride_yh,
    stride_bt,
    stride_bg,
    stride_ct,
    stride_cg,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    HEADS: tl.constexpr,  # heads a program takes
    WHOLE_P: tl.constexpr,
    WHOLE_N: tl.constexpr,
    EXACT: tl.constexpr,
    PDL: tl.constexpr,
    STAGES: tl.constexpr,
):
    parts = tl.cdiv(per_group, HEADS)
    group = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    chunk = tl.program_id(1)
    start = tl.load(chunks + 2 * chunk)
    count = tl.load(chunks + 2 * chunk + 1) - start
    q = tl.arange(0, Q)
    p = tl.arange(0, BP)
    n = tl.arange(0, BN)
    rows = tl.minimum(q, count - 1)
    t = start.to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    B = tile(B_TGN + t * stride_bt + group * stride_bg, rows, n, stride_bt, N, WHOLE_N)
    C = tile(C_TGN + t * stride_ct + group * stride_cg, rows, n, stride_ct, N, WHOLE_N)
    real = (q < count)[:, None] & (p < P)[None, :]
    in_state = (p < P)[:, None] & (n < N)[None, :]
    Z = tl.zeros((Q, Q), tl.float32)  # j, i
    dB = tl.zeros((Q, BN), tl.float32)
    dC = tl.zeros((Q, BN), tl.float32)
    first_head = (group * per_group + part * HEADS).to(tl.int64)
    for k in tl.range(0, tl.minimum(HEADS, per_group - part * HEADS), num_stages=STAGES):
        h = first_head + k
        row = h * n_chunks + chunk
        at = planes + row * Q
        x = tile(x_THP + t * stride_xt + h * stride_xh, rows, p, stride_xt, P, WHOLE_P)
        dy = tl.load(dy_THP + t * stride_yt + h * stride_yh + q[:, None] * stride_yt + p[None, :], real, other=0.0)
        at_state = (chunk * H + h) * P * N + p[:, None] * N + n[None, :]
        before = tl.load(h_ZHPN + at_state, in_state, other=0.0)
        behind = tl.load(g_ZHPN + at_state, in_state, other=0.0)
        tl.store(across_HZ + row, tl.sum(before.to(tl.float32) * behind.to(tl.float32)))
        out = tl.dot(dy, before.to(dy.dtype), input_precision="ieee")
        tl.store(shares + OUT * plane + row * Q + q, tl.sum(out * C.to(tl.float32), 1))
        dC += out * since_start(at, plane, Q, EXACT)[:, None]
        dB += tl.dot(x, behind.to(x.dtype), input_precision="ieee") * tl.load(at + LEFT * plane + q)[:, None]
        both = tl.dot(x, tl.trans(dy), input_precision="ieee") * tl.load(at + DTS * plane + q)[:, None]
        Z += both * departures(at, plane, Q, EXACT)
    dC = tl.dot(tl.trans(Z).to(B.dtype), B, dC, input_precision="ieee")
    dB = tl.dot(Z.to(C.dtype), C, dB, input_precision="ieee")
    stride_t = tl.num_programs(0) // parts * N
    to = parts_K2TGN + group * N + n[None, :]
    line = (part * 2 * T + t + q)[:, None]
    mask = (q < count)[:, None] & (n < N)[None, :]
    tl.store(to + line * stride_t, dB, mask)
    tl.store(to + (line + T) * stride_t, dC, mask)
