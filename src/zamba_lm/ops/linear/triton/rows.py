"""The product of a few rows with a weight: bound by how fast the weight comes out of memory.

A program owns a few rows of the weight over their whole width and keeps them in registers. In a chain of dependent launches it
asks for them before it waits for the kernel in front, so that memory is busy while that one ends.
"""

import triton
import triton.language as tl


@triton.jit
def columns(x, x2, at: tl.constexpr, I1: tl.constexpr, I: tl.constexpr, BK: tl.constexpr):  # noqa: E741
    """Numbers [at, at + BK) of a row that begins at ``x`` and, from I1 on, goes on at ``x2``; zeros beyond I."""
    k = at + tl.arange(0, BK)
    if at + BK <= I1:
        return tl.load(x + k)
    elif at >= I1:
        if at + BK <= I:
            return tl.load(x2 + (k - I1))
        else:
            return tl.load(x2 + (k - I1), mask=k < I, other=0.0)
    elif I1 == I:
        return tl.load(x + k, mask=k < I, other=0.0)
    else:
        left = tl.load(x + k, mask=k < I1, other=0.0)
        right = tl.load(x2 + (k - I1), mask=(k >= I1) & (k < I), other=0.0)
        return left + right


@triton.jit
def wide_columns(x, at: tl.constexpr, I: tl.constexpr, BK: tl.constexpr):  # noqa: E741
    """Numbers [at, at + BK) of a float32 row, eight a thread in two loads: laid out as a tile of a 16-bit weight is."""
    k = at + 8 * tl.arange(0, BK // 8)[:, None] + tl.arange(0, 4)[None, :]
    if at + BK <= I:
        low, high = tl.load(x + k), tl.load(x + k + 4)
    else:
        low, high = tl.load(x + k, mask=k < I, other=0.0), tl.load(x + k + 4, mask=k + 4 < I, other=0.0)
    return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (BK,))


@triton.jit
def weights(w_rows, at: tl.constexpr, I: tl.constexpr, BK: tl.constexpr):  # noqa: E741
    """A tile (rows, BK) of a weight: read once, so the L2 need not keep it."""
    k = at + tl.arange(0, BK)
    if at + BK <= I:
        return tl.load(w_rows + k[None, :], eviction_policy="evict_first")
    else:
        return tl.load(w_rows + k[None, :], mask=(k < I)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _add_both(a, b, c, d):
    return a + c, b + d


@triton.jit
def rows_kernel(
    x,
    x2,
    w,
    g,
    r,
    t,
    b,
    y,
    S,
    O,  # noqa: E741
    x_stride,
    x2_stride,
    r_stride,
    eps,
    I: tl.constexpr,  # noqa: E741
    I1: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    BK: tl.constexpr,
    GROUPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """y (S, O) = norm([x | x2]) w^T + r, or with GATED y (S, O) = gelu(gate) * up of a weight (2 O, I).

    g: weight of the norm over GROUPS parts (0: no norm). t (S, RANK) with b: what an adapter adds to the product. WIDE: x is
    float32 and w narrower.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    program = tl.program_id(0)
    TILES: tl.constexpr = (I + BK - 1) // BK
    if GATED:  # rows of gate and up in turn, so that their products lie side by side
        LINES: tl.constexpr = 2 * ROWS
        line = tl.arange(0, LINES)
        out = tl.minimum(program * ROWS + line // 2, O - 1) + (line % 2) * O
    else:
        LINES: tl.constexpr = ROWS
        line = tl.arange(0, LINES)
        out = tl.minimum(program * ROWS + line, O - 1)
    w_rows = w + out.to(tl.int64)[:, None] * I
    tiles = ()
    for i in tl.static_range(TILES):
        tiles = tiles + (weights(w_rows, i * BK, I, BK),)
    if RANK > 0:
        rank = tl.arange(0, triton.next_power_of_2(RANK))
        up = tl.load(b + out.to(tl.int64)[:, None] * RANK + rank[None, :], mask=(rank < RANK)[None, :], other=0.0)
    gains = ()
    if GROUPS > 0:
        for i in tl.static_range(TILES):
            gains = gains + (columns(g, g, i * BK, I, I, BK),)
    if PDL:
        tl.extra.cuda.gdc_wait()

    at = program * ROWS + tl.arange(0, ROWS)
    for s in range(S):
        parts = ()
        for i in tl.static_range(TILES):
            if WIDE:
                parts = parts + (wide_columns(x + s * x_stride, i * BK, I, BK),)
            else:
                parts = parts + (columns(x + s * x_stride, x2 + s * x2_stride, i * BK, I1, I, BK),)
        if RESIDUAL:  # asked for with x, since either takes the same time to come
            residual = tl.load(r + s * r_stride + at, mask=at < O, other=0.0)
        if RANK > 0:
            down = tl.load(t + s * RANK + rank, mask=rank < RANK, other=0.0).to(tl.float32)
        scales = ()
        if GROUPS > 1:
            for group in tl.static_range(GROUPS):
                squares = tl.zeros((BK,), tl.float32)
                for i in tl.static_range(TILES):
                    inside = (i * BK + tl.arange(0, BK)) // (I // GROUPS) == group
                    part = tl.where(inside, parts[i].to(tl.float32), 0.0)
                    squares += part * part
                scales = scales + (tl.rsqrt(tl.sum(squares, 0) / (I // GROUPS) + eps),)
        squares = tl.zeros((BK,), tl.float32)
        acc = tl.zeros((LINES, BK), tl.float32)
        for i in tl.static_range(TILES):
            part = parts[i].to(tl.float32)
            if GROUPS == 1:
                squares += part * part
            if GROUPS > 1:
                for group in tl.static_range(GROUPS):
                    inside = (i * BK + tl.arange(0, BK)) // (I // GROUPS) == group
                    part = tl.where(inside, part * scales[group], part)
            if GROUPS > 0:
                part *= gains[i].to(tl.float32)
            acc += tiles[i].to(tl.float32) * part[None, :]
        if GROUPS == 1:  # both sums in one reduction
            every = tl.broadcast_to(squares[None, :], (LINES, BK))
            product, total = tl.reduce((acc, every), 1, _add_both)
            product *= tl.rsqrt(total / I + eps)
        else:
            product = tl.sum(acc, 1)
        if RANK > 0:
            product += tl.sum(up.to(tl.float32) * down[None, :], 1)
        if GATED:
            gate, value = tl.split(tl.reshape(product, (ROWS, 2)))
            product = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476)) * value
        if RESIDUAL:
            product += residual.to(tl.float32)
        tl.store(y + s * O + at, product.to(y.dtype.element_ty), mask=at < O)
