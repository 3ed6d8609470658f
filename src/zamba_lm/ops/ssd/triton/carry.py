"""States across chunks, without outputs: what a segment adds, how segments hand on, and (for gradients) the state at every chunk.

The same walk serves both directions of time. Forward: h <- decay h + sum_j dt_j decay-to-end_j x_j B_j^T, from x and B.
Backward, for the gradient g of the state: g <- decay g + sum_i decay-from-start_i dy_i C_i^T, from dy and C.
"""

import triton
import triton.language as tl

from zamba_lm.ops.ssd.triton.steps import LEFT, since_start, tile


@triton.jit(do_not_specialize=["n_chunks"])
def carry_kernel(
    v_THP,
    m_TGN,
    planes,
    segments,
    carried_KHPN,  # ADD: what each segment adds; else the state before each segment, or the first states (S, H, P, N)
    decays_KH,  # ADD: decay over each segment
    before_ZHPN,  # not ADD: the state before every chunk
    after_SHPN,  # not ADD: the state after the sequence
    H,
    P,
    N,
    per_group,
    n_chunks,
    plane,
    stride_vt,
    stride_vh,
    stride_mt,
    stride_mg,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    ADD: tl.constexpr,
    START: tl.constexpr,  # where a segment's walk starts: 0 at zero, 1 at carried[segment], 2 at carried[sequence]
    AFTER: tl.constexpr,
    REVERSE: tl.constexpr,
    WHOLE_P: tl.constexpr,
    WHOLE_N: tl.constexpr,
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
    place = tl.load(segments + 6 * segment + 4)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if REVERSE:
        last = (place & 1) != 0
    else:
        last = (place & 2) != 0
    if ADD:
        if last:  # nobody asks what it adds
            return
    n = tl.arange(0, BN)
    q = tl.arange(0, Q)
    square = p[:, None] * N + n[None, :]
    in_square = (p < P)[:, None] & (n < N)[None, :]
    if START == 0:
        state = tl.zeros((BP, BN), tl.float32)
    else:
        row = segment if START == 1 else sequence
        state = tl.load(carried_KHPN + (row * H + h).to(tl.int64) * P * N + square, in_square, other=0.0)
    v_base = v_THP + h * stride_vh
    m_base = m_TGN + (h // per_group) * stride_mg
    count = tl.cdiv(end - start, Q)
    whole = 0.0
    for k in tl.range(0, count, num_stages=STAGES):
        c = count - 1 - k if REVERSE else k
        at = planes + (h.to(tl.int64) * n_chunks + first + c) * Q
        total = tl.load(at + Q - 1)
        t = start + c * Q
        rows = tl.minimum(q, end - 1 - t)  # padding repeats the last row; its weight is zero
        v = tile(v_base + t.to(tl.int64) * stride_vt, rows, p, stride_vt, P, WHOLE_P)
        m = tile(m_base + t.to(tl.int64) * stride_mt, rows, n, stride_mt, N, WHOLE_N)
        if not ADD:
            place_of = (first + c).to(tl.int64) * H + h
            tl.store(before_ZHPN + place_of * P * N + square, state.to(before_ZHPN.dtype.element_ty), in_square)
        if REVERSE:
            weights = tl.where(q < end - t, since_start(at, plane, Q, EXACT), 0.0)
        else:
            weights = tl.load(at + LEFT * plane + q)
        weighted = (m.to(tl.float32) * weights[:, None]).to(m.dtype)
        state = tl.dot(tl.trans(v), weighted, state * tl.exp2(total), input_precision="ieee")
        whole += total
    if ADD:
        to = (segment * H + h).to(tl.int64)
        tl.store(carried_KHPN + to * P * N + square, state, in_square)
        tl.store(decays_KH + to, tl.exp2(whole))
    elif AFTER:
        tl.store(after_SHPN + (sequence * H + h).to(tl.int64) * P * N + square, state, in_square & last)


@triton.jit
def hand_on_kernel(
    carried_KHPN,  # what each segment adds; afterwards the state before it
    decays_KH,
    first_SHPN,
    sequences,
    slots,
    H,
    PN,
    START: tl.constexpr,
    SLOTS: tl.constexpr,  # sequence s starts from first_SHPN[slots[s]]
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    h = tl.program_id(0)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s = tl.program_id(2)
    segment = tl.load(sequences + 2 * s)
    count = tl.load(sequences + 2 * s + 1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    here = e < PN
    if START:
        entry = s
        if SLOTS:
            entry = tl.load(slots + s)
        state = tl.load(first_SHPN + (entry * H + h).to(tl.int64) * PN + e, here & (count > 0), other=0.0).to(tl.float32)
    else:
        state = tl.zeros((BLOCK,), tl.float32)
    way = -1 if REVERSE else 1
    if REVERSE:
        segment += count - 1
    for k in range(0, count, 4):  # four loads under way at once
        at0, add0, decay0 = _link(carried_KHPN, decays_KH, segment + way * k, h, H, PN, e, here, k < count - 1)
        at1, add1, decay1 = _link(carried_KHPN, decays_KH, segment + way * (k + 1), h, H, PN, e, here, k + 1 < count - 1)
        at2, add2, decay2 = _link(carried_KHPN, decays_KH, segment + way * (k + 2), h, H, PN, e, here, k + 2 < count - 1)
        at3, add3, decay3 = _link(carried_KHPN, decays_KH, segment + way * (k + 3), h, H, PN, e, here, k + 3 < count - 1)
        tl.store(at0, state, here)
        state = state * decay0 + add0
        tl.store(at1, state, here & (k + 1 < count))
        state = state * decay1 + add1
        tl.store(at2, state, here & (k + 2 < count))
        state = state * decay2 + add2
        tl.store(at3, state, here & (k + 3 < count))
        state = state * decay3 + add3


@triton.jit
def _link(carried_KHPN, decays_KH, segment, h, H, PN, e, here, wanted):
    row = segment.to(tl.int64) * H + h
    at = carried_KHPN + row * PN + e
    return at, tl.load(at, here & wanted, other=0.0), tl.load(decays_KH + row, wanted, other=0.0)
