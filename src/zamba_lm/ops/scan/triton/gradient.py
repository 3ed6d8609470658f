"""The gradient kernel: everything that the loss wants to know about a tile of tokens, from the states at its two borders.

There are T x P x N products, and the gradients are sums of them over different axes: those of x and dt over N, those of B and C
over the channels, that of A over time. A program takes TILE tokens of a head and walks over channels. Sums over N and over the
tile end inside one step of the walk; sums over channels stay in registers (TILE x N of them a channel's lanes, twice) until the
walk ends. So no sum crosses lanes more often than it must, nothing is added atomically, and the result is the same every time.
"""

import triton
import triton.language as tl

from zamba_lm.ops.scan.triton.forward import load_tiles
from zamba_lm.ops.scan.triton.steps import LOG2E, gated, time_steps

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _row(tile, rows, r: tl.constexpr):
    """Column r of a tile; with fewer registers than ``row`` here, where there are none to spare."""
    return tl.sum(tl.where(rows == r, tile, 0.0), axis=1)


@triton.jit
def _down(state, A_n, dt_t, add_t, bc, n, H: tl.constexpr, NP: tl.constexpr, TILE: tl.constexpr):
    """Decays and states of a tile, token by token."""
    decays, states = (), ()
    for t in tl.static_range(TILE):
        decay = tl.exp2(dt_t[t][:, None, None] * A_n)
        state = decay * state + add_t[t][:, None, None] * tl.load(bc + t * H * 2 * NP + n)
        decays += (decay,)
        states += (state,)
    return decays, states


@triton.jit
def _up(
    G, A_n, decays, states, dt_t, add_t, dy_t, dBs, dCs, adds, rates, outs, bc, n,
    H: tl.constexpr, NP: tl.constexpr, TILE: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Back through the tile: shares of every gradient, added to what earlier parts of N and earlier channels gave."""
    newB, newC, new_adds, new_rates, new_outs = (), (), (), (), ()
    dA = tl.zeros_like(G)
    for t in tl.static_range(TILE - 1, -1, -1):
        B_n, C_n = tl.load(bc + t * H * 2 * NP + n), tl.load(bc + t * H * 2 * NP + NP + n)
        dy, dt, add = dy_t[t][:, None, None], dt_t[t][:, None, None], add_t[t][:, None, None]
        G += dy * C_n  # of the state after token t
        newB = (dBs[t] + add * G,) + newB
        newC = (dCs[t] + dy * states[t],) + newC
        new_adds = (adds[t] + tl.sum(G * B_n, axis=2),) + new_adds
        faded = (states[t] - add * B_n) * G
        new_rates = (rates[t] + tl.sum(faded * A_n, axis=2),) + new_rates
        dA += dt * faded
        if GATE:
            new_outs = (outs[t] + tl.sum(states[t] * C_n, axis=2),) + new_outs
        G = decays[t] * G
    if not GATE:
        new_outs = outs
    return dA, newB, newC, new_adds, new_rates, new_outs


@triton.jit
def _pair(sums, rows, j: tl.constexpr, SPLIT: tl.constexpr):
    """Totals over N of tile j's tokens, each with the lane whose token it is."""
    out = tl.zeros_like(sums[0])
    for r in tl.static_range(SPLIT):
        out = tl.where(rows == r, tl.sum(sums[j * SPLIT + r], axis=1)[:, None], out)
    return out


@triton.jit(do_not_specialize=["sp"])
def gradient_kernel(
    x, dt, z, dy, bc, A, D, bias, states, adjoints, dx, ddt, dz, dmaps, dD, dbias, tiles, low, high,
    sxh, sdh, szh, soh, sp, walk, n_tiles,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SOT: tl.constexpr, SPLIT: tl.constexpr, NP: tl.constexpr, NB: tl.constexpr, TILE: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """One tile of tokens, ``walk`` channels of one head, one warp. ``states`` become the tile's share of A's gradient.

    A_HNP, states and adjoints have channels side by side; NB of a lane's N / SPLIT numbers are worked on at once.
    """
    PB: tl.constexpr = 32 // SPLIT
    PART: tl.constexpr = NP // SPLIT
    TILES: tl.constexpr = TILE // SPLIT
    part, h, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, end = tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    left = tl.minimum(end - start, TILE)
    rows = tl.arange(0, SPLIT)[None, :]
    n0 = tl.arange(0, SPLIT)[None, :, None] * PART + tl.arange(0, NB)[None, None, :]
    start, tile = start.to(tl.int64), tile.to(tl.int64)
    x += h.to(tl.int64) * sxh + start * SXT
    dt += h.to(tl.int64) * sdh + start * SDT
    z += h.to(tl.int64) * szh + start * SZT
    dy += (start * H + h) * P
    dx += (start * H + h) * P
    dz += (start * H + h) * P
    ddt += h.to(tl.int64) * soh + start * SOT
    A += h * N * P
    bc += (tile * TILE * H + h) * 2 * NP
    states += (tile * H + h) * N * P
    adjoints += (tile * H + h) * N * P
    dD += (tile * H + h) * P
    dbias += (tile * H + h) * P
    dBs, dCs = (), ()
    for _b in tl.static_range(PART // NB):
        zeros = ()
        for _t in tl.static_range(TILE):
            zeros += (tl.zeros((PB, SPLIT, NB), tl.float32),)
        dBs += (zeros,)
        dCs += (zeros,)
    for p0 in range(part * walk, tl.minimum(P, (part + 1) * walk), PB):
        p = p0 + tl.arange(0, PB)
        live = p < P
        alive = live[:, None] & (rows >= 0)
        ox, od, oz, oy = rows * SXT + p[:, None], rows * SDT + p[:, None], rows * SZT + p[:, None], rows * H * P + p[:, None]
        oo = rows * SOT + p[:, None]
        D_p = tl.load(D + h * P + p, mask=live, other=0.0)[:, None]
        bias_p = D_p
        if RAW:
            bias_p = tl.load(bias + h * P + p, mask=live, other=0.0)[:, None]
        loaded = load_tiles(x, dt, z, ox, od, oz, alive, rows, left, SXT, SDT, SZT, SPLIT, TILES, GATE)
        dt_t, add_t, dy_t, sums = (), (), (), ()
        for j in tl.static_range(TILES):
            here = alive & (j * SPLIT + rows < left)
            dy_j = tl.load(dy + j * SPLIT * H * P + oy, mask=here, other=0.0)
            dy_j = gated(dy_j, loaded[j][2], GATE)
            step_j = tl.where(here, time_steps(loaded[j][1], bias_p, low, high, RAW, LIMITED), 0.0)
            add_j = step_j * loaded[j][0].to(tl.float32)
            for r in tl.static_range(SPLIT):
                dt_t += (_row(step_j, rows, r),)
                add_t += (_row(add_j, rows, r),)
                dy_t += (_row(dy_j, rows, r),)
                sums += (tl.zeros((PB, SPLIT), tl.float32),)
        adds, rates, outs = sums, sums, sums
        newB, newC = (), ()
        for b in tl.static_range(PART // NB):
            n = n0 + b * NB
            inside = live[:, None, None] & (n < N)
            at = p[:, None, None] * sp + n * P
            A_n = tl.load(A + at, mask=inside, other=0.0) * LOG2E
            state = tl.load(states + at, mask=inside, other=0.0)
            G = tl.load(adjoints + at, mask=inside, other=0.0)
            decays, after = _down(state, A_n, dt_t, add_t, bc, n, H, NP, TILE)
            dA, sumB, sumC, adds, rates, outs = _up(
                G, A_n, decays, after, dt_t, add_t, dy_t, dBs[b], dCs[b], adds, rates, outs, bc, n, H, NP, TILE, GATE
            )
            newB += (sumB,)
            newC += (sumC,)
            tl.store(states + at, dA, mask=inside)
        dBs, dCs = newB, newC
        dD_p, dbias_p = tl.zeros((PB, SPLIT), tl.float32), tl.zeros((PB, SPLIT), tl.float32)
        loaded = load_tiles(x, dt, z, ox, od, oz, alive, rows, left, SXT, SDT, SZT, SPLIT, TILES, GATE)  # rather than kept
        for j in tl.static_range(TILES):
            here = alive & (j * SPLIT + rows < left)
            x_j, raw_j, z_j = loaded[j]
            x_j, z_j = x_j.to(tl.float32), z_j.to(tl.float32)
            dy_j = tl.load(dy + j * SPLIT * H * P + oy, mask=here, other=0.0).to(tl.float32)
            add_j, rate_j = _pair(adds, rows, j, SPLIT), _pair(rates, rows, j, SPLIT) * LN2
            if GATE:
                open_j = 1.0 / (1.0 + tl.exp2(-z_j * LOG2E))
                y_j = _pair(outs, rows, j, SPLIT) + D_p * x_j
                dz_j = dy_j * y_j * open_j * (1.0 + z_j * (1.0 - open_j))
                tl.store(dz + j * SPLIT * H * P + oy, dz_j.to(dz.dtype.element_ty), mask=here)
                dy_j *= z_j * open_j
            step_j = time_steps(raw_j, bias_p, low, high, RAW, LIMITED)
            tl.store(dx + j * SPLIT * H * P + oy, (step_j * add_j + D_p * dy_j).to(dx.dtype.element_ty), mask=here)
            dD_p += dy_j * x_j
            ddt_j = x_j * add_j + rate_j
            if RAW:
                if LIMITED:
                    free = time_steps(raw_j, bias_p, low, high, True, False)
                    ddt_j = tl.where((free >= low) & (free <= high), ddt_j, 0.0)
                ddt_j = ddt_j / (1.0 + tl.exp2(-(raw_j.to(tl.float32) + bias_p) * LOG2E))
                dbias_p += tl.where(here, ddt_j, 0.0)
            tl.store(ddt + j * SPLIT * SOT + oo, ddt_j.to(ddt.dtype.element_ty), mask=here)
        tl.store(dD + p, tl.sum(dD_p, axis=1), mask=live)
        if RAW:
            tl.store(dbias + p, tl.sum(dbias_p, axis=1), mask=live)
    out = dmaps + ((part.to(tl.int64) * n_tiles + tile) * TILE * H + h) * 2 * NP
    for b in tl.static_range(PART // NB):
        for t in tl.static_range(TILE):
            to = out + t * H * 2 * NP + n0 + b * NB
            tl.store(to, tl.sum(dBs[b][t], axis=0)[None], mask=n0 >= 0)
            tl.store(to + NP, tl.sum(dCs[b][t], axis=0)[None], mask=n0 >= 0)
