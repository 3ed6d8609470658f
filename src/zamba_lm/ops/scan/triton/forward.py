"""The forward kernel: one exponential a channel, state number and token, and no second pass.

A warp takes 32 / SPLIT channels of a head and walks along the sequence, SPLIT tokens at a time, each lane with N / SPLIT numbers
of one channel's state in registers (steps.py says which). At the published width, 7424 channels of 16 numbers, four lanes a
channel are 928 warps, two for nearly every one of the 528 warp schedulers of an H200. More of them would take pieces of time side
by side, at the price of computing every exponential twice. What so few warps cannot have is partners to hide waiting, so inputs
are loaded AHEAD tiles of SPLIT tokens before they are needed, and B and C (which other warps have brought close) one tile.
"""

import triton
import triton.language as tl

from zamba_lm.ops.scan.triton.steps import (
    LOG2E,
    fetch_inputs,
    load_row,
    load_state,
    owned,
    silu,
    store_state,
    time_steps,
    totals,
    zeros,
)


@triton.jit
def spread_kernel(
    b, c, maps, tiles, rows, H, N, sbt, sbh, sct, sch, NP: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """B and C in float32 side by side, (rows, H, 2 NP), so that a lane reads its share with wide loads.

    TILE > 0: rows are those of tiles, (sequence, first token, end of the sequence) each; rows past the end are zeros.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, NP)
    t, h, inside = i // H, i % H, i < rows * H
    if TILE > 0:
        at = tiles + t // TILE * 3
        t = tl.load(at + 1, mask=inside, other=0) + t % TILE
        real = t < tl.load(at + 2, mask=inside, other=0)
    else:
        real = inside
    real = real[:, None] & (n < N)[None, :]
    t = t.to(tl.int64)
    to = maps + (i.to(tl.int64) * 2 * NP)[:, None] + n[None, :]
    values = tl.load(b + (t * sbt + h * sbh)[:, None] + n[None, :], mask=real, other=0.0)
    tl.store(to, values.to(tl.float32), mask=inside[:, None])
    values = tl.load(c + (t * sct + h * sch)[:, None] + n[None, :], mask=real, other=0.0)
    tl.store(to + NP, values.to(tl.float32), mask=inside[:, None])


@triton.jit
def load_tile(x, dt, z, ox, od, oz, inside, GATE: tl.constexpr):
    """What lies in memory of SPLIT tokens, one a lane; z only where GATE."""
    xs, dts = tl.load(x + ox, mask=inside, other=0.0), tl.load(dt + od, mask=inside, other=0.0)
    return xs, dts, tl.load(z + oz, mask=inside, other=0.0) if GATE else xs


@triton.jit
def prepare(tile, D_p, bias_p, low, high, c, inside, SPLIT: tl.constexpr, RAW: tl.constexpr, LIMITED: tl.constexpr):
    """What the recurrence needs of SPLIT tokens, time steps and additions of each, and the part of the output that passes by."""
    xs = tile[0].to(tl.float32)
    dts = tl.where(inside, time_steps(tile[1], bias_p, low, high, RAW, LIMITED), 0.0)  # 0 leaves the state as it is
    return owned(dts, c, SPLIT), owned(dts * xs, c, SPLIT), D_p * xs


@triton.jit
def advance(state, A_n, dts, adds, Bs, Cs, lane, q, SPLIT: tl.constexpr, PART: tl.constexpr):
    """The state after SPLIT tokens, and what it puts out, each token's to its lane."""
    sums = ()
    for r in tl.static_range(SPLIT):
        after, y = (), tl.zeros_like(dts[r])
        for j in tl.static_range(PART):
            h = tl.exp2(dts[r] * A_n[j]) * state[j] + adds[r] * Bs[r][j]
            y += h * Cs[r][j]
            after += (h,)
        state = after
        sums += (y,)
    return state, totals(sums, lane, q, 32 // SPLIT, SPLIT)


@triton.jit
def load_block(
    x, dt, z, first, end, live, q, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SPLIT: tl.constexpr, TILES: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """TILES tiles from token ``first`` on, at which the pointers stand; zeros from ``end`` on."""
    out = ()
    for j in tl.static_range(TILES):
        inside = live & (first + j * SPLIT + q < end)
        out += (load_tile(x, dt, z, j * SPLIT * SXT, j * SPLIT * SDT, j * SPLIT * SZT, inside, GATE),)
    return out


@triton.jit
def load_maps(bc, q, APART: tl.constexpr, NP: tl.constexpr, COUNT: tl.constexpr, PART: tl.constexpr):
    """A lane's share of B and C of COUNT tokens."""
    Bs, Cs = (), ()
    for r in tl.static_range(COUNT):
        Bs += (load_row(bc + r * APART, q, PART),)
        Cs += (load_row(bc + r * APART + NP, q, PART),)
    return Bs, Cs


@triton.jit
def forward_kernel(
    x, dt, z, bc, A, D, bias, before, y, after, kept, starts, first_piece, first_kept, slots, low, high, sxh, sdh, szh,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SPLIT: tl.constexpr, NP: tl.constexpr, TILES: tl.constexpr, HOLD: tl.constexpr, FAR: tl.constexpr,
    PIECE: tl.constexpr, EVERY: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr, GIVEN: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One sequence, 32 / SPLIT channels of one head, one warp. EVERY > 0: the state before every EVERY tokens goes to
    ``kept``, (n, H, N, P).

    Rows of ``bc`` are those of pieces of PIECE tokens, with zeros behind a sequence.
    """
    PB: tl.constexpr = 32 // SPLIT
    PART: tl.constexpr = NP // SPLIT
    STEP: tl.constexpr = SPLIT * TILES
    MAPS: tl.constexpr = H * 2 * NP
    BITS: tl.constexpr = x.dtype.element_ty.primitive_bitwidth
    lane = tl.arange(0, 32)
    q, c = lane // PB, lane % PB
    p, n = tl.program_id(0) * PB + c, q * PART
    h, s = tl.program_id(1), tl.program_id(2)
    start, end, piece = tl.load(starts + s), tl.load(starts + s + 1), tl.load(first_piece + s).to(tl.int64)
    live = p < P
    A_n, rates = load_state(A + (h * P + p) * N, n, N, 1, PART, live), ()
    for j in tl.static_range(PART):
        rates += (A_n[j] * LOG2E,)
    D_p = tl.load(D + h * P + p, mask=live, other=0.0)
    bias_p = tl.load(bias + h * P + p, mask=live, other=0.0) if RAW else D_p
    entry = tl.load(slots + s) if SLOTS else s
    at = ((entry.to(tl.int64) * H + h) * P + p) * N
    state = load_state(before + at, n, N, 1, PART, live) if GIVEN else zeros(PART)
    asking = (lane < STEP) & (tl.program_id(0) * PB * BITS % 256 == 0)  # 32 bytes come at a time: those of the next program too
    # heads and tokens may lie beyond 2^31: pointers move
    beyond = FAR * STEP + lane  # tokens that the L2 cache is asked for beforehand, a token a lane
    far_x = x + h.to(tl.int64) * sxh + start.to(tl.int64) * SXT + (beyond * SXT + tl.program_id(0) * PB)
    far_dt = dt + h.to(tl.int64) * sdh + start.to(tl.int64) * SDT + (beyond * SDT + tl.program_id(0) * PB)
    far_z = z + h.to(tl.int64) * szh + start.to(tl.int64) * SZT + (beyond * SZT + tl.program_id(0) * PB)
    x += h.to(tl.int64) * sxh + start.to(tl.int64) * SXT + (q * SXT + p)
    dt += h.to(tl.int64) * sdh + start.to(tl.int64) * SDT + (q * SDT + p)
    z += h.to(tl.int64) * szh + start.to(tl.int64) * SZT + (q * SZT + p)
    y += start.to(tl.int64) * H * P + h * P + (q * H * P + p)
    bc += (piece * PIECE * H + h) * 2 * NP
    kept += (tl.load(first_kept + s).to(tl.int64) * H + h) * N * P + p
    length = end - start
    block = load_block(x, dt, z, 0, length, live, q, SXT, SDT, SZT, SPLIT, TILES, GATE)
    Bs, Cs = load_maps(bc, q, MAPS, NP, HOLD, PART)
    dts, adds, passed = prepare(block[0], D_p, bias_p, low, high, c, live & (q < length), SPLIT, RAW, LIMITED)
    for t in range(0, length, STEP):
        x += STEP * SXT
        dt += STEP * SDT
        z += STEP * SZT
        now = block
        block = load_block(x, dt, z, t + STEP, length, live, q, SXT, SDT, SZT, SPLIT, TILES, GATE)
        if FAR > 0:
            ask = asking & (t + beyond < length)
            fetch_inputs(far_x, far_dt, far_z, ask, GATE)
            far_x += STEP * SXT
            far_dt += STEP * SDT
            far_z += STEP * SZT
        for j in tl.static_range(TILES):
            if EVERY > 0 and j * SPLIT % EVERY == 0:
                if EVERY <= STEP:  # no branch, which the compiler would not move loads across
                    store_state(kept, state, n, N, P, PART, live & (t + j * SPLIT < length))
                    kept += H * N * P
                elif t % EVERY == 0:
                    store_state(kept, state, n, N, P, PART, live)
                    kept += H * N * P
            now_B, now_C = Bs[:SPLIT], Cs[:SPLIT]
            new_B, new_C = load_maps(bc + (j * SPLIT + HOLD) * MAPS, q, MAPS, NP, SPLIT, PART)
            Bs, Cs = Bs[SPLIT:] + new_B, Cs[SPLIT:] + new_C
            tl.debug_barrier()  # or the compiler moves loads down to where their values are used, and waits there
            now_dts, now_adds, out = dts, adds, passed
            ahead = now[j + 1] if j + 1 < TILES else block[0]
            inside = live & (t + (j + 1) * SPLIT + q < length)
            dts, adds, passed = prepare(ahead, D_p, bias_p, low, high, c, inside, SPLIT, RAW, LIMITED)
            state, sums = advance(state, rates, now_dts, now_adds, now_B, now_C, lane, q, SPLIT, PART)
            out += sums
            if GATE:
                out *= silu(now[j][2].to(tl.float32))
            here = live & (t + j * SPLIT + q < length)
            tl.store(y + j * SPLIT * H * P, out.to(y.dtype.element_ty), mask=here)
        y += STEP * H * P
        bc += STEP * MAPS
    store_state(after + at, state, n, N, 1, PART, live & (length > 0))  # a frame may have empty sequences, with anybody's entry
