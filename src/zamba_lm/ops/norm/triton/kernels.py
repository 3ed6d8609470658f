"""One row, or one group of one, at a time: read once, kept in registers, written once. Gated or not is a flag."""

import triton
import triton.language as tl


def _named(what):
    return lambda call: f"gated_{what}" if call.constants.get("GATED") else what  # what a profile calls it


@triton.jit
def part(row, at: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Channels [at, at + TILE) of a row, zeros beyond WIDTH."""
    i = at + tl.arange(0, TILE)
    if at + TILE <= WIDTH:
        return tl.load(row + i)
    else:
        return tl.load(row + i, mask=i < WIDTH, other=0.0)


@triton.jit(repr=_named("norm_forward"), do_not_specialize=["T"])
def norm_forward(
    out,
    x,
    z,
    weight,
    T,
    x_stride,
    z_stride,
    eps,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs: (ROWS rows, group of WIDTH channels), in tiles of TILE channels. x is y where GATED."""
    group = tl.program_id(1) * WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    gains = ()
    for at in tl.static_range(0, WIDTH, TILE):
        gains = gains + (part(weight + group, at, WIDTH, TILE),)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for r in tl.static_range(ROWS):
        row = tl.minimum(tl.program_id(0) * ROWS + r, T - 1).to(tl.int64)
        parts = ()
        for at in tl.static_range(0, WIDTH, TILE):
            parts = parts + (part(x + row * x_stride + group, at, WIDTH, TILE).to(tl.float32),)
        if GATED:
            gates = ()
            for at in tl.static_range(0, WIDTH, TILE):
                gates = gates + (part(z + row * z_stride + group, at, WIDTH, TILE).to(tl.float32),)
            opened = ()
            for n in tl.static_range(len(parts)):
                opened = opened + (parts[n] * gates[n] / (1 + tl.exp(-gates[n])),)
            parts = opened
        squares = parts[0] * parts[0]
        for n in tl.static_range(1, len(parts)):
            squares += parts[n] * parts[n]
        scale = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        to = out + row * (WIDTH * GROUPS) + group
        for n in tl.static_range(len(parts)):
            i = n * TILE + tl.arange(0, TILE)
            value = (parts[n] * scale * gains[n].to(tl.float32)).to(out.dtype.element_ty)
            tl.store(to + i, value, mask=i < WIDTH)


@triton.jit
def _piece(x, row, stride, i, keep):
    return tl.load(x + row * stride + i, mask=keep, other=0.0)


@triton.jit
def _both(a, b, c, d):
    return a + c, b + d


@triton.jit
def _gated(y, z, GATED: tl.constexpr):
    """What is normed, y, the gate, and its sigmoid, float32."""
    y = y.to(tl.float32)
    if GATED:
        gate = z.to(tl.float32)
        sigmoid = 1 / (1 + tl.exp(-gate))
        return y * gate * sigmoid, y, gate, sigmoid
    return y, y, y, y


@triton.jit
def _store(d_x, d_z, d, y, gate, sigmoid, row, dx_stride, dz_stride, i, keep, GATED: tl.constexpr):
    """Gradients of x, and of z where GATED, for that of what is normed."""
    if GATED:
        silu = gate * sigmoid
        tl.store(d_z + row * dz_stride + i, (d * y * (sigmoid + silu * (1 - sigmoid))).to(d_z.dtype.element_ty), mask=keep)
        d *= silu
    tl.store(d_x + row * dx_stride + i, d.to(d_x.dtype.element_ty), mask=keep)


@triton.jit(repr=_named("norm_backward"))
def norm_backward(
    d_x,
    d_z,
    d_weight,
    again,
    d_out,
    x,
    z,
    weight,
    dx_stride,
    dz_stride,
    x_stride,
    z_stride,
    d_stride,
    eps,
    T,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    AGAIN: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    """Programs: (every ``programs``-th row, group), a row in two pieces of A and B channels, powers of two.

    d_weight (programs, D) float32: each program's share of the sum over rows. AGAIN: ``again`` (T, D) becomes what the forward
    pass returned. A row's two sums are made at once: threads wait for each other once a row."""
    program, programs, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    ia = tl.arange(0, A)
    ka, ia = ia < WIDTH, ia + group * WIDTH
    wa = tl.load(weight + ia, mask=ka, other=0.0).to(tl.float32)
    share_a = tl.zeros((A,), tl.float32)
    if B > 0:
        ib = A + tl.arange(0, B)
        kb, ib = ib < WIDTH, ib + group * WIDTH
        wb = tl.load(weight + ib, mask=kb, other=0.0).to(tl.float32)
        share_b = tl.zeros((B,), tl.float32)
    for turn in range(tl.cdiv(T - program, programs)):
        row = program.to(tl.int64) + turn * programs
        xa, da = _piece(x, row, x_stride, ia, ka), _piece(d_out, row, d_stride, ia, ka).to(tl.float32)
        za = xa
        if GATED:
            za = _piece(z, row, z_stride, ia, ka)
        if B > 0:
            xb, db = _piece(x, row, x_stride, ib, kb), _piece(d_out, row, d_stride, ib, kb).to(tl.float32)
            zb = xb
            if GATED:
                zb = _piece(z, row, z_stride, ib, kb)
        va, ya, gate_a, sigmoid_a = _gated(xa, za, GATED)
        squares, along = tl.reduce((va * va, da * wa * va), 0, _both)
        if B > 0:
            vb, yb, gate_b, sigmoid_b = _gated(xb, zb, GATED)
            more, further = tl.reduce((vb * vb, db * wb * vb), 0, _both)
            squares += more
            along += further
        scale = tl.rsqrt(squares / WIDTH + eps)
        along *= scale / WIDTH
        va *= scale
        share_a += da * va
        if AGAIN:
            tl.store(again + row * (WIDTH * GROUPS) + ia, (va * wa).to(again.dtype.element_ty), mask=ka)
        _store(d_x, d_z, scale * (da * wa - va * along), ya, gate_a, sigmoid_a, row, dx_stride, dz_stride, ia, ka, GATED)
        if B > 0:
            vb *= scale
            share_b += db * vb
            if AGAIN:
                tl.store(again + row * (WIDTH * GROUPS) + ib, (vb * wb).to(again.dtype.element_ty), mask=kb)
            _store(d_x, d_z, scale * (db * wb - vb * along), yb, gate_b, sigmoid_b, row, dx_stride, dz_stride, ib, kb, GATED)
    to = d_weight + program.to(tl.int64) * (WIDTH * GROUPS)
    tl.store(to + ia, share_a, mask=ka)
    if B > 0:
        tl.store(to + ib, share_b, mask=kb)
