"""The forward kernel: one exponential a channel, state number and token, and no second pass.

A lane keeps N / SPLIT numbers of one channel's state in registers and walks along the sequence; SPLIT lanes share a channel. At
the published width, 7424 channels of 16 numbers, two lanes a channel are 464 warps, one for nearly every one of the 528 warp
schedulers of an H200. The exponentials of one warp keep its scheduler's special function unit busy, so more warps (pieces of time
side by side, at the price of computing every exponential twice) would not be faster. What a lone warp cannot have is a partner to
hide waiting, so each block of tokens is loaded while the one before it is worked on.

Tiles are (channels, tokens) with SPLIT tokens: what is not multiplied by N (softplus, gate, products with x) is done once a
channel and token, by the lane whose token it is. Tensors of states are (channels, SPLIT, N / SPLIT); pointers into A and the
states step by runtime strides, so that Triton cannot see neighbouring addresses and spreads channels over lanes there too.
"""

import triton
import triton.language as tl

from zamba_lm.ops.scan.triton.steps import LOG2E, row, silu, time_steps


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
def load_tiles(
    x, dt, z, ox, od, oz, inside, rows, left, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SPLIT: tl.constexpr, TILES: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Inputs of TILES tiles, as they lie in memory; pointers stand at the first token, of which there are ``left``."""
    tiles = ()
    for j in tl.static_range(TILES):
        here = inside & (j * SPLIT + rows < left)
        xs = tl.load(x + j * SPLIT * SXT + ox, mask=here, other=0.0)
        dts = tl.load(dt + j * SPLIT * SDT + od, mask=here, other=0.0)
        zs = xs
        if GATE:
            zs = tl.load(z + j * SPLIT * SZT + oz, mask=here, other=0.0)
        tiles += ((xs, dts, zs),)
    return tiles


@triton.jit
def load_maps(maps, n, NP: tl.constexpr):
    """A lane's share of one token's B and C."""
    return tl.load(maps + n), tl.load(maps + NP + n)


@triton.jit
def prepare(tile, D_p, bias_p, low, high, inside, rows, SPLIT: tl.constexpr, RAW: tl.constexpr, LIMITED: tl.constexpr):
    """What the recurrence needs of a tile's tokens, (time step, addition) of each, and the part of the output that passes by."""
    xs, dts, _ = tile
    xs = xs.to(tl.float32)
    dts = tl.where(inside, time_steps(dts, bias_p, low, high, RAW, LIMITED), 0.0)  # 0 leaves the state as it is
    adds = dts * xs
    steps = ()
    for r in tl.static_range(SPLIT):
        steps += ((row(dts, rows, r), row(adds, rows, r)),)
    return steps, D_p * xs


@triton.jit
def advance(state, out, A_n, steps, maps, rows, SPLIT: tl.constexpr):
    """The state after a tile, and the outputs of its tokens."""
    for r in tl.static_range(SPLIT):
        dt_p, add_p = steps[r]
        B_n, C_n = maps[r]
        state = tl.exp2(dt_p[:, None, None] * A_n) * state + add_p[:, None, None] * B_n
        y_p = tl.sum(tl.sum(state * C_n, axis=2), axis=1)
        out = tl.where(rows == r, out + y_p[:, None], out)
    return state, out


@triton.jit(do_not_specialize=["san", "sap"])
def forward_kernel(
    x, dt, z, bc, A, D, bias, before, y, after, kept, starts, first_kept, low, high, sxh, sdh, szh, san, sap,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SPLIT: tl.constexpr, NP: tl.constexpr, TILES: tl.constexpr, HOLD: tl.constexpr, KEEP: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """One sequence, 32 / SPLIT channels of one head, one warp. KEEP > 0: the state before every KEEP tokens goes to ``kept``."""
    PB: tl.constexpr = 32 // SPLIT
    PART: tl.constexpr = NP // SPLIT
    STEP: tl.constexpr = SPLIT * TILES
    MAPS: tl.constexpr = H * 2 * NP
    p = tl.program_id(0) * PB + tl.arange(0, PB)
    h, s = tl.program_id(1), tl.program_id(2)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    rows = tl.arange(0, SPLIT)[None, :]
    n = tl.arange(0, SPLIT)[None, :, None] * PART + tl.arange(0, PART)[None, None, :]
    live = p < P
    alive = ((P % PB == 0) | live)[:, None] & (rows >= 0)
    states = live[:, None, None] & (n < N)
    ox, od, oz, oy = rows * SXT + p[:, None], rows * SDT + p[:, None], rows * SZT + p[:, None], rows * H * P + p[:, None]
    A_n = tl.load(A + (h * P + p)[:, None, None] * sap + n * san, mask=states, other=0.0) * LOG2E
    D_p = tl.load(D + h * P + p, mask=live, other=0.0)[:, None]
    bias_p = D_p
    if RAW:
        bias_p = tl.load(bias + h * P + p, mask=live, other=0.0)[:, None]
    at = (s.to(tl.int64) * H + h) * P
    if GIVEN:
        state = tl.load(before + (at + p)[:, None, None] * sap + n * san, mask=states, other=0.0)
    else:
        state = tl.zeros((PB, SPLIT, PART), tl.float32)
    # heads and tokens may lie beyond 2^31: pointers move, offsets inside a tile stay small
    x += h.to(tl.int64) * sxh + start.to(tl.int64) * SXT
    dt += h.to(tl.int64) * sdh + start.to(tl.int64) * SDT
    z += h.to(tl.int64) * szh + start.to(tl.int64) * SZT
    y += start.to(tl.int64) * H * P + h * P
    bc += (start.to(tl.int64) * H + h) * 2 * NP
    length = end - start
    whole = length // STEP * STEP
    tiles, held = load_tiles(x, dt, z, ox, od, oz, alive, rows, length, SXT, SDT, SZT, SPLIT, TILES, GATE), ()
    for k in tl.static_range(HOLD):
        held += (load_maps(bc + k * MAPS, n, NP),)
    steps, passed = prepare(tiles[0], D_p, bias_p, low, high, alive, rows, SPLIT, RAW, LIMITED)
    for t in range(0, whole, STEP):
        if KEEP > 0:
            if t % KEEP == 0:
                to = ((tl.load(first_kept + s) + t // KEEP).to(tl.int64) * H + h) * P
                tl.store(kept + (to + p)[:, None, None] * sap + n * san, state, mask=states)
        x += STEP * SXT
        dt += STEP * SDT
        z += STEP * SZT
        now = tiles
        tiles = load_tiles(x, dt, z, ox, od, oz, alive, rows, length - STEP - t, SXT, SDT, SZT, SPLIT, TILES, GATE)
        for j in tl.static_range(TILES):
            maps, held = held[:SPLIT], held[SPLIT:]
            for r in tl.static_range(SPLIT):
                held += (load_maps(bc + (j * SPLIT + r + HOLD) * MAPS, n, NP),)
            tl.debug_barrier()  # or the compiler moves loads down to where their values are used, and waits there
            now_steps, out = steps, passed
            if j + 1 < TILES:
                steps, passed = prepare(now[j + 1], D_p, bias_p, low, high, alive, rows, SPLIT, RAW, LIMITED)
            else:
                steps, passed = prepare(tiles[0], D_p, bias_p, low, high, alive, rows, SPLIT, RAW, LIMITED)
            state, out = advance(state, out, A_n, now_steps, maps, rows, SPLIT)
            if GATE:
                out *= silu(now[j][2].to(tl.float32))
            tl.store(y + j * SPLIT * H * P + oy, out.to(y.dtype.element_ty), mask=alive)
        y += STEP * H * P
        bc += STEP * MAPS
    left = length - whole
    if left > 0:
        if KEEP > 0:
            if whole % KEEP == 0:
                to = ((tl.load(first_kept + s) + whole // KEEP).to(tl.int64) * H + h) * P
                tl.store(kept + (to + p)[:, None, None] * sap + n * san, state, mask=states)
        for done in range(0, left, SPLIT):
            here = alive & (done + rows < left)
            tile = load_tiles(x, dt, z, ox, od, oz, alive, rows, left - done, SXT, SDT, SZT, SPLIT, 1, GATE)[0]
            steps, out = prepare(tile, D_p, bias_p, low, high, here, rows, SPLIT, RAW, LIMITED)
            maps = ()
            for r in tl.static_range(SPLIT):  # another sequence's B may be NaN, and 0 x NaN is NaN
                maps += (load_maps(bc + tl.minimum(done + r, left - 1) * MAPS, n, NP),)
            state, out = advance(state, out, A_n, steps, maps, rows, SPLIT)
            if GATE:
                out *= silu(tile[2].to(tl.float32))
            tl.store(y + oy, out.to(y.dtype.element_ty), mask=here)
            x += SPLIT * SXT
            dt += SPLIT * SDT
            z += SPLIT * SZT
            y += SPLIT * H * P
    tl.store(after + (at + p)[:, None, None] * sap + n * san, state, mask=states)
