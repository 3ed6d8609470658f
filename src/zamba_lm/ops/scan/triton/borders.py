"""States at the borders of small tiles of tokens, from the left and from the right: all that the gradient kernel cannot know.

The gradient's own recurrence is the scan's, backwards, with C dy in the place of B dt x:

    G[t] = exp(dt[t] A) (G[t + 1] + C[t] dy[t])

where G[t] is what the loss gains from the state before token t. Maps (B and C) lie tile by tile, padded with zeros. States of
borders are (tiles, H, N, P), channels side by side.
"""

import triton
import triton.language as tl

from zamba_lm.ops.scan.triton.forward import load_tile
from zamba_lm.ops.scan.triton.steps import LOG2E, fetch_inputs, gated, load_row, load_state, owned, store_state, time_steps, zeros


@triton.jit
def states_kernel(
    x, dt, bc, A, bias, kept, states, pieces, starts, first_tile, low, high, sxh, sdh,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SXT: tl.constexpr, SDT: tl.constexpr,
    NP: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr, RAW: tl.constexpr, LIMITED: tl.constexpr,
):  # fmt: skip
    """The state before every tile of a piece of KEEP tokens, from the state before the piece; a lane a channel."""
    p = tl.program_id(0) * 32 + tl.arange(0, 32)
    h, piece = tl.program_id(1), tl.program_id(2)
    s, start, end = tl.load(pieces + piece * 3), tl.load(pieces + piece * 3 + 1), tl.load(pieces + piece * 3 + 2)
    length = tl.minimum(end - start, KEEP)
    tile = tl.load(first_tile + s) + (start - tl.load(starts + s)) // TILE
    live, n = p < P, tl.zeros((32,), tl.int32)
    A_n = load_state(A + (h * P + p) * N, n, N, 1, NP, live)
    bias_p = tl.load(bias + h * P + p, mask=live, other=0.0) if RAW else A_n[0]
    state = load_state(kept + (piece.to(tl.int64) * H + h) * N * P + p, n, N, P, NP, live)
    x += h.to(tl.int64) * sxh + start.to(tl.int64) * SXT
    dt += h.to(tl.int64) * sdh + start.to(tl.int64) * SDT
    bc += (tile.to(tl.int64) * TILE * H + h) * 2 * NP
    states += (tile.to(tl.int64) * H + h) * N * P
    next_x, next_dt = tl.load(x + p, mask=live, other=0.0), tl.load(dt + p, mask=live, other=0.0)
    for t in range(0, length):
        if t % TILE == 0:
            store_state(states + p, state, n, N, P, NP, live)
            states += H * N * P
        step = time_steps(next_dt, bias_p, low, high, RAW, LIMITED)
        add = step * next_x.to(tl.float32)
        ahead = live & (t + 1 < length)
        x += SXT
        dt += SDT
        next_x, next_dt = tl.load(x + p, mask=ahead, other=0.0), tl.load(dt + p, mask=ahead, other=0.0)
        B_n, after = load_row(bc, n, NP), ()
        for j in tl.static_range(NP):
            after += (tl.exp2(step * (A_n[j] * LOG2E)) * state[j] + add * B_n[j],)
        state = after
        bc += H * 2 * NP


@triton.jit
def load_block(
    x, dt, z, ox, od, oz, inside, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SPLIT: tl.constexpr, TILES: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """TILES tiles, one after the other."""
    out = ()
    for j in tl.static_range(TILES):
        to_x, to_dt, to_z = j * SPLIT * SXT, j * SPLIT * SDT, j * SPLIT * SZT
        out += (load_tile(x + to_x, dt + to_dt, z + to_z, ox, od, oz, inside, GATE),)
    return out


@triton.jit
def load_C(bc, q, H: tl.constexpr, NP: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr):
    out = ()
    for t in tl.static_range(TILE):
        out += (load_row(bc + t * H * 2 * NP + NP, q, PART),)
    return out


@triton.jit
def back(
    block, Cs, G, A_n, bias_p, low, high, q, c, left, SPLIT: tl.constexpr, PART: tl.constexpr, TILES: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """G before a tile of tokens, from G after it."""
    for j in tl.static_range(TILES - 1, -1, -1):
        dy, raw, z = block[j]
        step = tl.where(j * SPLIT + q < left, time_steps(raw, bias_p, low, high, RAW, LIMITED), 0.0)
        dts, dys = owned(step, c, SPLIT), owned(gated(dy, z, GATE), c, SPLIT)
        for r in tl.static_range(SPLIT - 1, -1, -1):
            before = ()
            for i in tl.static_range(PART):
                before += (tl.exp2(dts[r] * A_n[i]) * (G[i] + dys[r] * Cs[j * SPLIT + r][i]),)
            G = before
    return G


@triton.jit
def adjoints_kernel(
    dy, dt, z, bc, A, bias, dafter, dbefore, adjoints, starts, first_tile, low, high, sdh, szh,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SPLIT: tl.constexpr, NP: tl.constexpr, TILE: tl.constexpr, FAR: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """G after every tile of a sequence, and before its first token; the forward kernel's layout, walking backwards."""
    PB: tl.constexpr = 32 // SPLIT
    PART: tl.constexpr = NP // SPLIT
    TILES: tl.constexpr = TILE // SPLIT
    lane = tl.arange(0, 32)
    q, c = lane // PB, lane % PB
    p, n = tl.program_id(0) * PB + c, q * PART
    h, s = tl.program_id(1), tl.program_id(2)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    live = p < P
    oy, od, oz = q * H * P + p, q * SDT + p, q * SZT + p
    A_p = load_state(A + (h * P + p) * N, n, N, 1, PART, live)
    A_n = ()
    for j in tl.static_range(PART):
        A_n += (A_p[j] * LOG2E,)
    bias_p = tl.load(bias + h * P + p, mask=live, other=0.0) if RAW else A_n[0]
    at = ((s.to(tl.int64) * H + h) * P + p) * N
    G = load_state(dafter + at, n, N, 1, PART, live) if GIVEN else zeros(PART)
    tiles = tl.cdiv(end - start, TILE)
    first = (start + (tiles - 1) * TILE).to(tl.int64)  # token of the last tile
    left = end - start - (tiles - 1) * TILE
    tile = (tl.load(first_tile + s) + tiles - 1).to(tl.int64)
    dy += (first * H + h) * P
    dt += h.to(tl.int64) * sdh + first * SDT
    z += h.to(tl.int64) * szh + first * SZT
    bc += (tile * TILE * H + h) * 2 * NP
    adjoints += (tile * H + h) * N * P
    beyond, p0 = lane - FAR * TILE, tl.program_id(0) * PB  # tokens that the L2 cache is asked for beforehand, a token a lane
    asking = (lane < TILE) & (p0 * dy.dtype.element_ty.primitive_bitwidth % 256 == 0)  # 32 bytes come at a time
    far_y, far_dt, far_z = dy + (beyond * H * P + p0), dt + (beyond * SDT + p0), z + (beyond * SZT + p0)
    ahead, Cs = (), load_C(bc, q, H, NP, PART, TILE)
    for j in tl.static_range(TILES):
        here = live & (j * SPLIT + q < left)
        dys = tl.load(dy + j * SPLIT * H * P + oy, mask=here, other=0.0)
        dts = tl.load(dt + j * SPLIT * SDT + od, mask=here, other=0.0)
        ahead += ((dys, dts, tl.load(z + j * SPLIT * SZT + oz, mask=here, other=0.0) if GATE else dys),)
    for i in range(0, tiles):
        store_state(adjoints + p, G, n, N, P, PART, live)
        more = (i + 1 < tiles).to(tl.int32)  # the first tile is loaded once more, for nothing
        adjoints -= more * (H * N * P)
        bc -= more * (TILE * H * 2 * NP)
        dy -= more * (TILE * H * P)
        dt -= more * (TILE * SDT)
        z -= more * (TILE * SZT)
        if FAR > 0:
            ask = asking & (i + FAR < tiles)
            fetch_inputs(far_y, far_dt, far_z, ask, GATE)
            far_y -= TILE * H * P
            far_dt -= TILE * SDT
            far_z -= TILE * SZT
        now, now_C = ahead, Cs
        ahead = load_block(dy, dt, z, oy, od, oz, live & (more > 0), H * P, SDT, SZT, SPLIT, TILES, GATE)
        Cs = load_C(bc, q, H, NP, PART, TILE)
        tl.debug_barrier()  # or the compiler moves loads down to where their values are used, and waits there
        G = back(now, now_C, G, A_n, bias_p, low, high, q, c, left, SPLIT, PART, TILES, RAW, LIMITED, GATE)
        left = TILE
    store_state(dbefore + at, G, n, N, 1, PART, live)
