"""States at the borders of small tiles of tokens, from the left and from the right: all that the gradient kernel cannot know.

The gradient's own recurrence is the scan's, backwards, with C dy in the place of B dt x:

    G[t] = exp(dt[t] A) (G[t + 1] + C[t] dy[t])

where G[t] is what the loss gains from the state before token t. Maps (B and C) lie tile by tile, padded with zeros.
"""

import triton
import triton.language as tl

from zamba_lm.ops.scan.triton.forward import load_tiles
from zamba_lm.ops.scan.triton.steps import LOG2E, gated, row, time_steps


@triton.jit(do_not_specialize=["sp"])
def states_kernel(
    x, dt, bc, A, bias, kept, states, pieces, starts, first_tile, low, high, sxh, sdh, sp,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SXT: tl.constexpr, SDT: tl.constexpr,
    SPLIT: tl.constexpr, NP: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr, RAW: tl.constexpr, LIMITED: tl.constexpr,
):  # fmt: skip
    """The state before every tile of a piece of KEEP tokens, from the state before the piece; 32 / SPLIT channels, one warp."""
    PB: tl.constexpr = 32 // SPLIT
    PART: tl.constexpr = NP // SPLIT
    TILES: tl.constexpr = TILE // SPLIT
    p = tl.program_id(0) * PB + tl.arange(0, PB)
    h, piece = tl.program_id(1), tl.program_id(2)
    s, start, end = tl.load(pieces + piece * 3), tl.load(pieces + piece * 3 + 1), tl.load(pieces + piece * 3 + 2)
    length = tl.minimum(end - start, KEEP)
    tile = tl.load(first_tile + s) + (start - tl.load(starts + s)) // TILE
    rows = tl.arange(0, SPLIT)[None, :]
    n = tl.arange(0, SPLIT)[None, :, None] * PART + tl.arange(0, PART)[None, None, :]
    live = p < P
    alive = live[:, None] & (rows >= 0)
    inside = live[:, None, None] & (n < N)
    ox, od = rows * SXT + p[:, None], rows * SDT + p[:, None]
    A_n = tl.load(A + (h * P + p)[:, None, None] * sp * N + n * sp, mask=inside, other=0.0) * LOG2E
    bias_p = p[:, None].to(tl.float32)
    if RAW:
        bias_p = tl.load(bias + h * P + p, mask=live, other=0.0)[:, None]
    at = (piece.to(tl.int64) * H + h) * P
    state = tl.load(kept + (at + p)[:, None, None] * sp * N + n * sp, mask=inside, other=0.0)
    x += h.to(tl.int64) * sxh + start.to(tl.int64) * SXT
    dt += h.to(tl.int64) * sdh + start.to(tl.int64) * SDT
    bc += (tile.to(tl.int64) * TILE * H + h) * 2 * NP
    states += (tile.to(tl.int64) * H + h) * N * P
    ahead = load_tiles(x, dt, x, ox, od, ox, alive, rows, length, SXT, SDT, SXT, SPLIT, TILES, False)
    for t in range(0, length, TILE):
        tl.store(states + p[:, None, None] * sp + n * P, state, mask=inside)
        now = ahead
        x += TILE * SXT
        dt += TILE * SDT
        ahead = load_tiles(x, dt, x, ox, od, ox, alive, rows, length - TILE - t, SXT, SDT, SXT, SPLIT, TILES, False)
        for j in tl.static_range(TILES):
            xs, dts, _ = now[j]
            dts = time_steps(dts, bias_p, low, high, RAW, LIMITED)
            dts = tl.where(j * SPLIT + rows < length - t, dts, 0.0)
            adds = dts * xs.to(tl.float32)
            for r in tl.static_range(SPLIT):
                B_n = tl.load(bc + (j * SPLIT + r) * H * 2 * NP + n)
                decay = tl.exp2(row(dts, rows, r)[:, None, None] * A_n)
                state = decay * state + row(adds, rows, r)[:, None, None] * B_n
        bc += TILE * H * 2 * NP
        states += H * N * P


@triton.jit
def back(
    tile, maps, G, A_n, bias_p, low, high, rows, left, SPLIT: tl.constexpr, TILES: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """G before a tile of tokens, from G after it."""
    for j in tl.static_range(TILES - 1, -1, -1):
        dys, dts, zs = tile[j]
        dys = gated(dys, zs, GATE)
        dts = tl.where(j * SPLIT + rows < left, time_steps(dts, bias_p, low, high, RAW, LIMITED), 0.0)
        for r in tl.static_range(SPLIT - 1, -1, -1):
            G += row(dys, rows, r)[:, None, None] * maps[j * SPLIT + r]
            G *= tl.exp2(row(dts, rows, r)[:, None, None] * A_n)
    return G


@triton.jit
def load_C(bc, n, H: tl.constexpr, NP: tl.constexpr, TILE: tl.constexpr):
    maps = ()
    for t in tl.static_range(TILE):
        maps += (tl.load(bc + t * H * 2 * NP + NP + n),)
    return maps


@triton.jit(do_not_specialize=["sp"])
def adjoints_kernel(
    dy, dt, z, bc, A, bias, dafter, dbefore, adjoints, starts, first_tile, low, high, sdh, szh, sp,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SPLIT: tl.constexpr, NP: tl.constexpr, TILE: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """G after every tile of a sequence, and before its first token; the forward kernel's layout, walking backwards."""
    PB: tl.constexpr = 32 // SPLIT
    PART: tl.constexpr = NP // SPLIT
    TILES: tl.constexpr = TILE // SPLIT
    p = tl.program_id(0) * PB + tl.arange(0, PB)
    h, s = tl.program_id(1), tl.program_id(2)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    rows = tl.arange(0, SPLIT)[None, :]
    n = tl.arange(0, SPLIT)[None, :, None] * PART + tl.arange(0, PART)[None, None, :]
    live = p < P
    alive = live[:, None] & (rows >= 0)
    inside = live[:, None, None] & (n < N)
    oy, od, oz = rows * H * P + p[:, None], rows * SDT + p[:, None], rows * SZT + p[:, None]
    A_n = tl.load(A + (h * P + p)[:, None, None] * sp * N + n * sp, mask=inside, other=0.0) * LOG2E
    bias_p = p[:, None].to(tl.float32)
    if RAW:
        bias_p = tl.load(bias + h * P + p, mask=live, other=0.0)[:, None]
    at = (s.to(tl.int64) * H + h) * P
    if GIVEN:
        G = tl.load(dafter + (at + p)[:, None, None] * sp * N + n * sp, mask=inside, other=0.0)
    else:
        G = tl.zeros((PB, SPLIT, PART), tl.float32)
    tiles = tl.cdiv(end - start, TILE)
    first = (start + (tiles - 1) * TILE).to(tl.int64)  # token of the last tile
    left = end - start - (tiles - 1) * TILE
    tile = (tl.load(first_tile + s) + tiles - 1).to(tl.int64)
    dy += (first * H + h) * P
    dt += h.to(tl.int64) * sdh + first * SDT
    z += h.to(tl.int64) * szh + first * SZT
    bc += (tile * TILE * H + h) * 2 * NP
    adjoints += (tile * H + h) * N * P
    ahead = load_tiles(dy, dt, z, oy, od, oz, alive, rows, left, H * P, SDT, SZT, SPLIT, TILES, GATE)
    held = load_C(bc, n, H, NP, TILE)
    for i in range(0, tiles):
        tl.store(adjoints + p[:, None, None] * sp + n * P, G, mask=inside)
        adjoints -= H * N * P
        bc -= TILE * H * 2 * NP * (i + 1 < tiles).to(tl.int32)
        dy -= TILE * H * P
        dt -= TILE * SDT
        z -= TILE * SZT
        now, maps = ahead, held
        here = alive & (i + 1 < tiles)
        ahead = load_tiles(dy, dt, z, oy, od, oz, here, rows, TILE, H * P, SDT, SZT, SPLIT, TILES, GATE)
        held = load_C(bc, n, H, NP, TILE)
        tl.debug_barrier()  # or the compiler moves loads down to where their values are used, and waits there
        G = back(now, maps, G, A_n, bias_p, low, high, rows, left, SPLIT, TILES, RAW, LIMITED, GATE)
        left = TILE
    tl.store(dbefore + (at + p)[:, None, None] * sp * N + n * sp, G, mask=inside)
