"""One row, or one group of one, at a time: read once, kept in registers, written once. Gated or not is a flag."""

import triton
import triton.language as tl

from zamba_lm.ops.sigmoid import quick_sigmoid


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


@triton.jit
def put(row, at: tl.constexpr, value, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """The opposite of ``part``."""
    i = at + tl.arange(0, TILE)
    if at + TILE <= WIDTH:
        tl.store(row + i, value)
    else:
        tl.store(row + i, value, mask=i < WIDTH)


@triton.jit
def silu(gate):
    return gate * quick_sigmoid(gate)


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
    """Programs: (ROWS rows, group of WIDTH channels), in tiles of TILE channels. x is y where GATED. Last rows first: they were
    written last, and some of them are in the cache."""
    group = tl.program_id(1) * WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    gains = ()
    for at in tl.static_range(0, WIDTH, TILE):
        gains = gains + (part(weight + group, at, WIDTH, TILE),)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for r in tl.static_range(ROWS):
        row = (T - 1 - tl.minimum(tl.program_id(0) * ROWS + r, T - 1)).to(tl.int64)
        xs, zs = (), ()
        for at in tl.static_range(0, WIDTH, TILE):
            xs = xs + (part(x + row * x_stride + group, at, WIDTH, TILE),)
            if GATED:
                zs = zs + (part(z + row * z_stride + group, at, WIDTH, TILE),)
        parts = ()
        for n in tl.static_range(len(xs)):
            v = xs[n].to(tl.float32)
            if GATED:
                v *= silu(zs[n].to(tl.float32))
            parts = parts + (v,)
        squares = parts[0] * parts[0]
        for n in tl.static_range(1, len(parts)):
            squares += parts[n] * parts[n]
        scale = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        to = out + row * (WIDTH * GROUPS) + group
        for n in tl.static_range(len(parts)):
            put(to, n * TILE, (parts[n] * scale * gains[n].to(tl.float32)).to(out.dtype.element_ty), WIDTH, TILE)


@triton.jit
def _row(x, row, stride, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """A row in tiles, as it lies there."""
    tiles = ()
    for at in tl.static_range(0, WIDTH, TILE):
        tiles = tiles + (part(x + row * stride, at, WIDTH, TILE),)
    return tiles


@triton.jit
def _rows(x, z, d_out, row, x_stride, z_stride, d_stride, WIDTH: tl.constexpr, GATED: tl.constexpr, TILE: tl.constexpr):
    """A row of x, of z where GATED, and of the gradient."""
    xs = _row(x, row, x_stride, WIDTH, TILE)
    zs = xs
    if GATED:
        zs = _row(z, row, z_stride, WIDTH, TILE)
    return xs, zs, _row(d_out, row, d_stride, WIDTH, TILE)


@triton.jit
def _both(a, b, c, d):
    return a + c, b + d


@triton.jit
def _gated(y, z, GATED: tl.constexpr):
    """What is normed, y, the gate, and its sigmoid, float32."""
    y = y.to(tl.float32)
    if GATED:
        gate = z.to(tl.float32)
        half = tl.exp2(gate * -0.7213475204444817)  # not as in silu, whose numbers the compiler would keep: too many registers
        root = tl.rsqrt(1 + half * half)
        sigmoid = root * root
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
    TILE: tl.constexpr,
):
    """Programs: (every ``programs``-th row, group), a row in tiles of TILE channels, asked for while the one before is worked on.

    d_weight (programs, D) float32: each program's share of the sum over rows. AGAIN: ``again`` (T, D) becomes what the forward
    pass returned. A row's two sums are made at once: threads wait for each other once a row."""
    program, programs, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1) * WIDTH
    x, z, d_out, weight, d_x, d_z, again = (
        x + group,
        z + group,
        d_out + group,
        weight + group,
        d_x + group,
        d_z + group,
        again + group,
    )
    shares = ()
    for _ in tl.static_range(0, WIDTH, TILE):
        shares = shares + (tl.zeros((TILE,), tl.float32),)
    xs, zs, ds = _rows(x, z, d_out, program.to(tl.int64), x_stride, z_stride, d_stride, WIDTH, GATED, TILE)
    for turn in range(tl.cdiv(T - program, programs)):
        row = program.to(tl.int64) + turn * programs
        next = tl.minimum(row + programs, T - 1)
        next_xs, next_zs, next_ds = _rows(x, z, d_out, next, x_stride, z_stride, d_stride, WIDTH, GATED, TILE)
        squares, along = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for n in tl.static_range(len(xs)):
            v = xs[n].to(tl.float32)
            if GATED:
                v *= silu(zs[n].to(tl.float32))
            squares += v * v
            along += ds[n].to(tl.float32) * part(weight, n * TILE, WIDTH, TILE).to(tl.float32) * v
        squares, along = tl.reduce((squares, along), 0, _both)
        scale = tl.rsqrt(squares / WIDTH + eps)
        along *= scale / WIDTH
        more = ()
        for n in tl.static_range(len(xs)):
            i = n * TILE + tl.arange(0, TILE)
            v, y, gate, sigmoid = _gated(xs[n], zs[n], GATED)
            w, d = part(weight, n * TILE, WIDTH, TILE).to(tl.float32), ds[n].to(tl.float32)
            v *= scale
            more = more + (shares[n] + d * v,)
            if AGAIN:
                tl.store(again + row * (WIDTH * GROUPS) + i, (v * w).to(again.dtype.element_ty), mask=i < WIDTH)
            d = scale * (d * w - v * along)
            _store(d_x, d_z, d, y, gate, sigmoid, row, dx_stride, dz_stride, i, i < WIDTH, GATED)
        shares, xs, zs, ds = more, next_xs, next_zs, next_ds
    to = d_weight + program.to(tl.int64) * (WIDTH * GROUPS) + group
    for n in tl.static_range(len(shares)):
        i = n * TILE + tl.arange(0, TILE)
        tl.store(to + i, shares[n], mask=i < WIDTH)
