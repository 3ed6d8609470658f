"""Log decays: running sums of dt A inside every chunk, and what follows from them, in units of log 2.

Laid out in planes of (H, chunks, Q), so that the other kernels read one chunk of one head as Q neighbouring numbers. Tokens that
pad a chunk have dt = 0: they neither decay nor add, whatever their rows hold, and the sum at Q - 1 is the whole chunk's.

exp of a difference of float32 running sums forgets small steps behind large ones (see the README). Steps are cut off at a decay
to nothing, which keeps sums below 64 x 150; for float32 inputs (EXACT) they are added as 64-bit integers, and what float32 cannot
hold of a sum is kept in a plane of its own.
"""

import triton
import triton.language as tl

from zamba_lm.ops.step.triton.parts import time_step

SUMS = tl.constexpr(0)  # s_i: log decay from before the chunk to behind token i
FROM = tl.constexpr(1)  # s_j - log2 dt_j: exp2(s_i - it) is dt_j times the decay from j to i; not EXACT
LEFT = tl.constexpr(2)  # dt_j times the decay from behind token j to the chunk's end
DTS = tl.constexpr(3)
LOST = tl.constexpr(4)  # what float32 cannot hold of SUMS; EXACT only
PLANES = 5

LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-150.0)  # 2^-150 is zero in float32
NEVER = tl.constexpr(1e30)  # in FROM, for dt = 0
UNIT = tl.constexpr(1099511627776.0)  # 2^40: integers count 2^-40


@triton.jit(do_not_specialize=["n_chunks"])
def steps_kernel(
    dt_TH,
    A_H,
    bias_H,
    planes,
    chunks,
    H,
    n_chunks,
    plane,
    stride_t,
    stride_h,
    low,
    high,
    Q: tl.constexpr,
    BH: tl.constexpr,
    RAW: tl.constexpr,  # dt is what softplus(dt + bias), kept between low and high, is made of
    LIMITED: tl.constexpr,
    EXACT: tl.constexpr,
    PDL: tl.constexpr,
):
    chunk = tl.program_id(0)
    start = tl.load(chunks + 2 * chunk)
    end = tl.load(chunks + 2 * chunk + 1)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    q = tl.arange(0, Q)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    t = (start + q).to(tl.int64)
    mask = (t < end)[:, None] & (h < H)[None, :]
    dt = tl.load(dt_TH + t[:, None] * stride_t + h[None, :] * stride_h, mask, other=0.0).to(tl.float32)
    if RAW:
        bias = tl.load(bias_H + h, h < H, other=0.0)
        dt = tl.where(mask, time_step(dt + bias[None, :], low, high, LIMITED), 0.0)
    A = tl.load(A_H + h, h < H, other=0.0) * LOG2E
    steps = tl.maximum(dt * A[None, :], NOTHING, propagate_nan=tl.PropagateNan.ALL)
    to = planes + (h[None, :].to(tl.int64) * n_chunks + chunk) * Q + q[:, None]
    inside = (h < H)[None, :] & (q >= 0)[:, None]
    if EXACT:
        whole = tl.cumsum((steps * UNIT).to(tl.int64), 0)
        total = tl.sum((steps * UNIT).to(tl.int64), 0)[None, :]
        sums = whole.to(tl.float32)
        lost = (whole - sums.to(tl.int64)).to(tl.float32) * (1 / UNIT)
        sums = sums * (1 / UNIT)
        left = dt * tl.exp2((total - whole).to(tl.float32) * (1 / UNIT))
        tl.store(to + LOST * plane, lost, inside)
    else:
        sums = tl.cumsum(steps, 0)
        left = dt * tl.exp2(tl.sum(steps, 0)[None, :] - sums)
        tl.store(to + FROM * plane, tl.where(dt > 0, sums - tl.log2(dt), NEVER), inside)
    tl.store(to + SUMS * plane, sums, inside)
    tl.store(to + LEFT * plane, left, inside)
    tl.store(to + DTS * plane, dt, inside)


@triton.jit
def arrivals(at, plane, Q: tl.constexpr, EXACT: tl.constexpr):
    """(Q, Q): dt_j times the decay from token j to token i, zero for j > i and masked before exp; rows are i.

    ``at``: where the chunk's row begins in the first plane.
    """
    q = tl.arange(0, Q)
    if EXACT:
        logs = tl.load(at + q)[:, None] - tl.load(at + q)[None, :]
        logs += tl.load(at + LOST * plane + q)[:, None] - tl.load(at + LOST * plane + q)[None, :]
    else:
        logs = tl.load(at + q)[:, None] - tl.load(at + FROM * plane + q)[None, :]
    weights = tl.exp2(tl.where(q[:, None] >= q[None, :], logs, -float("inf")))
    if EXACT:
        weights *= tl.load(at + DTS * plane + q)[None, :]
    return weights


@triton.jit
def departures(at, plane, Q: tl.constexpr, EXACT: tl.constexpr):
    """(Q, Q): decay from token j to token i, zero for j > i and masked before exp; rows are j."""
    q = tl.arange(0, Q)
    logs = tl.load(at + q)[None, :] - tl.load(at + q)[:, None]
    if EXACT:
        lost = at + LOST * plane + q
        logs += tl.load(lost)[None, :] - tl.load(lost)[:, None]
    return tl.exp2(tl.where(q[None, :] >= q[:, None], logs, -float("inf")))


@triton.jit
def since_start(at, plane, Q: tl.constexpr, EXACT: tl.constexpr):
    """(Q,): decay from before the chunk to behind each token."""
    q = tl.arange(0, Q)
    logs = tl.load(at + q)
    if EXACT:
        logs += tl.load(at + LOST * plane + q)
    return tl.exp2(logs)


@triton.jit
def tile(base, rows, columns, stride, width, WHOLE: tl.constexpr):
    """Rows of a tensor whose columns lie side by side; zeros beyond ``width`` unless the columns are WHOLE."""
    at = base + rows[:, None] * stride + columns[None, :]
    if WHOLE:
        return tl.load(at)
    return tl.load(at, (columns < width)[None, :] & (rows >= 0)[:, None], other=0.0)
