"""The gradient kernel: everything that the loss wants to know about a tile of tokens, from the states at its two borders.

There are T x P x N products, and the gradients are sums of them over different axes: those of x and dt over N, those of B and C
over the channels, that of A over time. A program takes TILE tokens of a head and walks over channels. Sums over the tile end
inside one step of the walk, sums over N cross the SPLIT lanes of a channel there; sums over channels stay in registers
(TILE x N / SPLIT of them a lane, twice) until the walk ends. Nothing is added atomically, so the result is the same every time.
"""

import triton
import triton.language as tl

from zamba_lm.ops.scan.triton.forward import load_tile
from zamba_lm.ops.scan.triton.steps import (
    LOG2E,
    fetch_early,
    fetch_inputs,
    gated,
    load_row,
    load_state,
    owned,
    store_state,
    time_steps,
    totals,
    zeros,
)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _down(state, A_n, dts, adds, bc, q, H: tl.constexpr, NP: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr):
    """Decays and states of a tile, token by token."""
    decays, states = (), ()
    for t in tl.static_range(TILE):
        B_n = load_row(bc + t * H * 2 * NP, q, PART)
        decay, after = (), ()
        for i in tl.static_range(PART):
            decay += (tl.exp2(dts[t] * A_n[i]),)
            after += (decay[i] * state[i] + adds[t] * B_n[i],)
        state = after
        decays += (decay,)
        states += (after,)
    return decays, states


@triton.jit
def _up(
    G, A_n, decays, states, dts, adds, dys, dBs, dCs, bc, q,
    H: tl.constexpr, NP: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Back through the tile: a lane's shares of every gradient, those of B and C added to what earlier channels gave."""
    newB, newC, by_add, by_rate, outs, dA = (), (), (), (), (), zeros(PART)
    for t in tl.static_range(TILE - 1, -1, -1):
        B_n, C_n = load_row(bc + t * H * 2 * NP, q, PART), load_row(bc + t * H * 2 * NP + NP, q, PART)
        before, dB, dC, new_dA = (), (), (), ()
        add, rate, out = tl.zeros_like(dts[t]), tl.zeros_like(dts[t]), tl.zeros_like(dts[t])
        for i in tl.static_range(PART):
            g = G[i] + dys[t] * C_n[i]  # of the state after token t
            dB += (dBs[t][i] + adds[t] * g,)
            dC += (dCs[t][i] + dys[t] * states[t][i],)
            add += g * B_n[i]
            faded = (states[t][i] - adds[t] * B_n[i]) * g
            rate += faded * A_n[i]
            new_dA += (dA[i] + dts[t] * faded,)
            if GATE:
                out += states[t][i] * C_n[i]
            before += (decays[t][i] * g,)
        G, dA = before, new_dA
        newB, newC = (dB,) + newB, (dC,) + newC
        by_add, by_rate, outs = (add,) + by_add, (rate,) + by_rate, (out,) + outs
    return dA, newB, newC, by_add, by_rate, outs


@triton.jit
def _ask(
    x, dt, z, dy, p, which, lane, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr, SYT: tl.constexpr, GATE: tl.constexpr
):  # fmt: skip
    """Have the L2 cache bring a tile's inputs of the channels from p on, a token a lane."""
    fetch_inputs(x + p + lane * SXT, dt + p + lane * SDT, z + p + lane * SZT, which, GATE)
    fetch_early(dy + p + lane * SYT, which)


@triton.jit
def _over_lanes(value, lane, apart: tl.constexpr, SPLIT: tl.constexpr):
    """The sum over SPLIT lanes, ``apart`` from each other, in all of them."""
    if SPLIT == 1:
        return value
    else:
        HALF: tl.constexpr = SPLIT // 2
        return _over_lanes(value + tl.gather(value, lane ^ (HALF * apart), 0), lane, apart, HALF)


@triton.jit
def _column(rows, i: tl.constexpr, TILE: tl.constexpr):
    out = ()
    for t in tl.static_range(TILE):
        out += (rows[t][i],)
    return out


@triton.jit
def _store_maps(to, sums, lane, c, q, stride, PB: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr):
    """Sums over channels of every token and number of the state: PB tokens at a time, each by a lane of its own."""
    for i in tl.static_range(PART):
        column = _column(sums, i, TILE)
        for k in tl.static_range(TILE // PB):
            total = totals(column[k * PB : (k + 1) * PB], lane, c, 1, PB)
            tl.store(to + (k * PB + c) * stride + q * PART + i, total)


@triton.jit
def gradient_kernel(
    x, dt, z, dy, bc, A, D, bias, states, adjoints, dx, ddt, dz, dmaps, dD, dbias, tiles, low, high,
    sxh, sdh, szh, soh, walk, n_tiles,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SXT: tl.constexpr, SDT: tl.constexpr, SZT: tl.constexpr,
    SOT: tl.constexpr, SPLIT: tl.constexpr, NP: tl.constexpr, TILE: tl.constexpr,
    RAW: tl.constexpr, LIMITED: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """One tile of tokens, ``walk`` channels of one head, one warp. ``adjoints`` become the tile's share of A's gradient."""
    PB: tl.constexpr = 32 // SPLIT
    PART: tl.constexpr = NP // SPLIT
    TILES: tl.constexpr = TILE // SPLIT
    lane = tl.arange(0, 32)
    q, c = lane // PB, lane % PB
    n = q * PART
    part, h, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, end = tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    left = tl.minimum(end - start, TILE)
    start, tile = start.to(tl.int64), tile.to(tl.int64)
    x += h.to(tl.int64) * sxh + start * SXT
    dt += h.to(tl.int64) * sdh + start * SDT
    z += h.to(tl.int64) * szh + start * SZT
    dy += (start * H + h) * P
    dx += (start * H + h) * P
    dz += (start * H + h) * P
    ddt += h.to(tl.int64) * soh + start * SOT
    A += h * P * N
    bc += (tile * TILE * H + h) * 2 * NP
    states += (tile * H + h) * N * P
    adjoints += (tile * H + h) * N * P
    dD += (tile * H + h) * P
    dbias += (tile * H + h) * P
    dBs, dCs = (), ()
    for _ in tl.static_range(TILE):
        dBs += (zeros(PART),)
        dCs += (zeros(PART),)
    for p0 in range(part * walk, tl.minimum(P, (part + 1) * walk), PB):
        p = p0 + c
        live = p < P
        soon = p0 + PB  # the channels that come next: the L2 cache is asked for all that will be loaded of them
        asked = (lane < left) & (soon < P)
        asked &= soon * x.dtype.element_ty.primitive_bitwidth % 256 == 0  # it brings 32 bytes at a time
        _ask(x, dt, z, dy, soon, asked, lane, SXT, SDT, SZT, H * P, GATE)
        fetch_early(states + soon + lane * P, (lane < N) & (soon < P))
        fetch_early(adjoints + soon + lane * P, (lane < N) & (soon < P))
        D_p = tl.load(D + h * P + p, mask=live, other=0.0)
        bias_p = tl.load(bias + h * P + p, mask=live, other=0.0) if RAW else D_p
        dts, adds, dys = (), (), ()
        for j in tl.static_range(TILES):
            t = j * SPLIT + q
            here = live & (t < left)
            xs, raw, zs = load_tile(x, dt, z, t * SXT + p, t * SDT + p, t * SZT + p, here, GATE)
            step = tl.where(here, time_steps(raw, bias_p, low, high, RAW, LIMITED), 0.0)
            dts += owned(step, c, SPLIT)
            adds += owned(step * xs.to(tl.float32), c, SPLIT)
            given = tl.load(dy + t * H * P + p, mask=here, other=0.0)
            dys += owned(gated(given, zs, GATE), c, SPLIT)
        A_p, A_n = load_state(A + p * N, n, N, 1, PART, live), ()
        for i in tl.static_range(PART):
            A_n += (A_p[i] * LOG2E,)
        G = load_state(adjoints + p, n, N, P, PART, live)
        decays, after = _down(load_state(states + p, n, N, P, PART, live), A_n, dts, adds, bc, q, H, NP, PART, TILE)
        dA, dBs, dCs, by_add, by_rate, outs = _up(G, A_n, decays, after, dts, adds, dys, dBs, dCs, bc, q, H, NP, PART, TILE, GATE)
        store_state(adjoints + p, dA, n, N, P, PART, live)
        dD_p, dbias_p = tl.zeros((32,), tl.float32), tl.zeros((32,), tl.float32)
        for j in tl.static_range(TILES):
            t = j * SPLIT + q
            here = live & (t < left)
            xs, raw, zs = load_tile(x, dt, z, t * SXT + p, t * SDT + p, t * SZT + p, here, GATE)
            to = t * H * P + p
            x_p, dy_p = xs.to(tl.float32), tl.load(dy + to, mask=here, other=0.0).to(tl.float32)
            add = totals(by_add[j * SPLIT : (j + 1) * SPLIT], lane, q, PB, SPLIT)
            rate = totals(by_rate[j * SPLIT : (j + 1) * SPLIT], lane, q, PB, SPLIT) * LN2
            if GATE:
                z_p = zs.to(tl.float32)
                gate = 1.0 / (1.0 + tl.exp2(-z_p * LOG2E))
                y_p = totals(outs[j * SPLIT : (j + 1) * SPLIT], lane, q, PB, SPLIT) + D_p * x_p
                dz_p = dy_p * y_p * gate * (1.0 + z_p * (1.0 - gate))
                tl.store(dz + to, dz_p.to(dz.dtype.element_ty), mask=here)
                dy_p *= z_p * gate
            step = time_steps(raw, bias_p, low, high, RAW, LIMITED)
            tl.store(dx + to, (step * add + D_p * dy_p).to(dx.dtype.element_ty), mask=here)
            dD_p += dy_p * x_p
            ddt_p = x_p * add + rate
            if RAW:
                if LIMITED:
                    free = time_steps(raw, bias_p, low, high, True, False)
                    ddt_p = tl.where((free >= low) & (free <= high), ddt_p, 0.0)
                ddt_p = ddt_p / (1.0 + tl.exp2(-(raw.to(tl.float32) + bias_p) * LOG2E))
                dbias_p += tl.where(here, ddt_p, 0.0)
            tl.store(ddt + t * SOT + p, ddt_p.to(ddt.dtype.element_ty), mask=here)
        tl.store(dD + p, _over_lanes(dD_p, lane, PB, SPLIT), mask=live & (q == 0))
        if RAW:
            tl.store(dbias + p, _over_lanes(dbias_p, lane, PB, SPLIT), mask=live & (q == 0))
    out = dmaps + ((part.to(tl.int64) * n_tiles + tile) * TILE * H + h) * 2 * NP
    _store_maps(out, dBs, lane, c, q, H * 2 * NP, PB, PART, TILE)
    _store_maps(out + NP, dCs, lane, c, q, H * 2 * NP, PB, PART, TILE)
