"""The end of the gradient: time steps, decay rates and skips from the chunks' shares, and the parts of dB and dC added up."""

import triton
import triton.language as tl

from zamba_lm.ops.ssd.triton.gradient import COLUMN, INTO, OUT, PASSED, ROW
from zamba_lm.ops.ssd.triton.steps import DTS, LOST


@triton.jit
def finish_kernel(
    A_H,
    planes,
    shares,
    across_HZ,
    chunks,
    ddt_TH,
    dA_ZH,
    dD_ZH,
    dbias_ZH,
    H,
    n_chunks,
    plane,
    stride_ddt,
    low,
    high,
    Q: tl.constexpr,
    BH: tl.constexpr,
    RAW: tl.constexpr,
    LIMITED: tl.constexpr,
    EXACT: tl.constexpr,
    PDL: tl.constexpr,
):
    chunk = tl.program_id(0)
    start = tl.load(chunks + 2 * chunk)
    end = tl.load(chunks + 2 * chunk + 1)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    here = h < H
    q = tl.arange(0, Q)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = h.to(tl.int64) * n_chunks + chunk
    at = row[None, :] * Q + q[:, None]
    mask = here[None, :] & (q >= 0)[:, None]
    sums = tl.load(planes + at, mask, other=0.0)
    total = tl.load(planes + row * Q + Q - 1, here, other=0.0)
    dt = tl.load(planes + DTS * plane + at, mask, other=0.0)
    rest = total[None, :] - sums
    if EXACT:
        lost = tl.load(planes + LOST * plane + at, mask, other=0.0)
        rest += tl.load(planes + LOST * plane + row * Q + Q - 1, here, other=0.0)[None, :] - lost
        sums += lost
    column = tl.load(shares + COLUMN * plane + at, mask, other=0.0)
    into = tl.load(shares + INTO * plane + at, mask, other=0.0) * tl.exp2(rest)
    out = tl.load(shares + OUT * plane + at, mask, other=0.0) * tl.exp2(sums)
    across = tl.load(across_HZ + row, here, other=0.0) * tl.exp2(total)
    # sums over j < t <= i are running sums from the end of (rows - columns); what goes into g crosses the tokens behind it
    steps = tl.load(shares + ROW * plane + at, mask, other=0.0) - dt * (column + into) + out
    behind = tl.sum(steps, 0)[None, :] - tl.cumsum(steps, 0) + steps
    dlog = behind + (tl.sum(dt * into, 0) + across)[None, :]
    ddt = column + into + tl.load(A_H + h, here, other=0.0)[None, :] * dlog
    passed = tl.load(shares + PASSED * plane + at, mask, other=0.0)
    t = (start + q).to(tl.int64)[:, None]
    mask = mask & (t < end)
    if RAW:
        ddt *= _slope(dt, low, high, LIMITED)
        tl.store(dbias_ZH + chunk * H + h, tl.sum(tl.where(mask, ddt, 0.0), 0), here)
    tl.store(ddt_TH + t * stride_ddt + h[None, :], ddt.to(ddt_TH.dtype.element_ty), mask)
    tl.store(dA_ZH + chunk * H + h, tl.sum(dt * dlog, 0), here)
    tl.store(dD_ZH + chunk * H + h, tl.sum(passed, 0), here)


@triton.jit
def _slope(dt, low, high, LIMITED: tl.constexpr):
    """Derivative of the time step by what softplus was given, sigmoid(raw) = 1 - exp(-softplus(raw)); none beyond the limits."""
    slope = tl.where(dt < 0.02, dt * (1 - dt * (0.5 - dt * (1 / 6))), 1 - tl.exp(-dt))
    if LIMITED:
        slope = tl.where((dt > low) & (dt < high), slope, 0.0)
    return slope


@triton.jit
def add_up_kernel(parts_KE, dB_TE, dC_TE, n_parts, T, width, stride_t, BT: tl.constexpr, BW: tl.constexpr, PDL: tl.constexpr):
    """dB and dC, T rows of ``width`` numbers ``stride_t`` apart, as the sum over the first axis of (parts, 2, T, width), in
    order. Programs: blocks of rows, dB or dC."""
    which = tl.program_id(1)
    t = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)[:, None]
    e = tl.arange(0, BW)[None, :]
    here = (t < T) & (e < width)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = parts_KE + which.to(tl.int64) * T * width + t * width + e
    total = tl.zeros((BT, BW), tl.float32)
    for _ in range(n_parts):
        total += tl.load(at, here, other=0.0)
        at += 2 * T * width
    if which == 0:
        tl.store(dB_TE + t * stride_t + e, total.to(dB_TE.dtype.element_ty), here)
    else:
        tl.store(dC_TE + t * stride_t + e, total.to(dC_TE.dtype.element_ty), here)
